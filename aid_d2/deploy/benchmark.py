"""What distillation was for: detectors side by side, in time, size and AP."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from tqdm import trange

from .average_precision import Arrays, TestSet
from .detector import TrainedDetector
from .runtime import Detector


@dataclass
class Candidate:
    """A detector in one runtime.

    Attributes:
        name: of its row.
        runtime: what runs it.
        file: the checkpoint or the .onnx.
        class_names: of its classes.
        parameters, macs: as `aid-d2 complexity` counts them.
        resize: a BGR image to that of the network, in the runtime's own way.
        detect: the resized image to detections.
        memory: that it takes, in MiB, if it was measured.
        seconds: (resize, detect) of each repeat.
        ap: in percent, if it was measured.
    """

    name: str
    runtime: str
    file: Path
    class_names: Sequence[str]
    parameters: int
    macs: int
    resize: Callable[[np.ndarray], np.ndarray]
    detect: Callable[[np.ndarray], Arrays]
    memory: float | None = None
    seconds: list[tuple[float, float]] = field(default_factory=list)
    ap: float | None = None

    def run(self, image: np.ndarray) -> None:
        """Time one image."""
        start = time.perf_counter()
        resized = self.resize(image)
        middle = time.perf_counter()
        self.detect(resized)
        self.seconds.append((middle - start, time.perf_counter() - middle))


def torch_candidate(
    name: str,
    config_file: str,
    weights: str,
    sizes: Sequence[tuple[int, ...]],
    fast: bool = False,
) -> Candidate:
    """A detector as Detectron2 runs it, or sped up; its MACs are of images of these (H, W)."""
    detector = TrainedDetector.load(config_file, weights)
    size = detector.canvas(sizes)
    if fast:
        detector.speed_up()
    return Candidate(
        name,
        "PyTorch, fast" if fast else "PyTorch",
        Path(detector.weights),
        detector.class_names,
        *detector.complexity(size),
        detector.resize,
        detector.arrays,
    )


def file_candidate(name: str, runtime: type[Detector], file: str, threads: int) -> Candidate:
    """An exported detector."""
    detector = runtime(file, threads)
    known = detector.metadata
    return Candidate(
        name,
        detector.runtime,
        Path(file),
        known["classes"],
        known["parameters"],
        known["macs"],
        detector.resize,
        detector.run,
    )


def time_all(candidates: Sequence[Candidate], images: Sequence[np.ndarray], repeats: int) -> None:
    """Run all candidates in turn, so that what slows the machine slows them alike.

    The first round, in which memory is taken, does not count.
    """
    for repeat in trange(repeats + 1, unit="round"):
        for candidate in candidates:
            candidate.run(images[repeat % len(images)])
    for candidate in candidates:
        del candidate.seconds[0]


def evaluate_all(candidates: Sequence[Candidate], data: TestSet) -> None:
    """Measure the AP of each."""
    for candidate in candidates:
        candidate.ap = data.average_precision(candidate.resize, candidate.detect)


def report(candidates: Sequence[Candidate]) -> list[dict]:
    """A row of figures for each candidate: median, least and most milliseconds."""
    slowest = max(_median(x, 1) for x in candidates)
    rows = []
    for x in candidates:
        row = {
            "detector": x.name,
            "runtime": x.runtime,
            "parameters (M)": round(x.parameters / 1e6, 2),
            "MACs (G)": round(x.macs / 1e9, 2),
            "file (MiB)": round(x.file.stat().st_size / 2**20, 1),
            "resize (ms)": round(_median(x, 0), 1),
            "detect (ms)": round(_median(x, 1), 1),
            "least": round(min(y[1] for y in x.seconds) * 1000, 1),
            "most": round(max(y[1] for y in x.seconds) * 1000, 1),
            "images / s": round(1000 / (_median(x, 0) + _median(x, 1)), 1),
            "faster": f"{slowest / _median(x, 1):.1f}x",
        }
        if x.memory is not None:
            row["memory (MiB)"] = round(x.memory)
        if x.ap is not None:
            row["AP"] = round(x.ap, 2)
        rows.append(row)
    return rows


def plot(rows: Sequence[dict], path: Path) -> None:
    """Draw AP over the time of a detection, from rows of :func:`report` with an AP.

    A detector has one color, and a runtime one shape.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(x["detector"] for x in rows))}
    shapes = dict(zip(dict.fromkeys(x["runtime"] for x in rows), "os^DvP"))
    for row in rows:
        colour, shape = colours[row["detector"]], shapes[row["runtime"]]
        axes.plot(row["detect (ms)"], row["AP"], shape, color=colour, markersize=9, alpha=0.7)
    legend = [Line2D([], [], ls="", marker="o", color=y, label=x) for x, y in colours.items()]
    legend += [Line2D([], [], ls="", marker=y, color="gray", label=x) for x, y in shapes.items()]
    figure.legend(handles=legend, loc="outside right upper", frameon=False)
    axes.set(xlabel="milliseconds an image, resizing left out", ylabel="AP", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _median(candidate: Candidate, part: int) -> float:
    return 1000 * statistics.median(x[part] for x in candidate.seconds)
