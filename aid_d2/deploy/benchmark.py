"""What distillation was for: detectors side by side, in time, size and AP."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tabulate import tabulate
from tqdm import trange

from .detector import TrainedDetector
from .runtime import Detector

TORCH, ONNXRUNTIME = "torch", "onnxruntime"


@dataclass
class Candidate:
    """A detector in one runtime.

    Attributes:
        name: of its row.
        backend: TORCH or ONNXRUNTIME.
        file: the checkpoint or the .onnx.
        resize: a BGR image to that of the network, the same in both runtimes.
        detect: the resized image to detections.
        seconds: (resize, detect) of each repeat.
    """

    name: str
    backend: str
    file: Path
    resize: Callable[[np.ndarray], np.ndarray]
    detect: Callable[[np.ndarray], object]
    seconds: list[tuple[float, float]] = field(default_factory=list)

    def run(self, image: np.ndarray) -> None:
        """Time one image."""
        start = time.perf_counter()
        resized = self.resize(image)
        middle = time.perf_counter()
        self.detect(resized)
        self.seconds.append((middle - start, time.perf_counter() - middle))


def torch_candidate(name: str, config_file: str, weights: str) -> Candidate:
    """A detector as Detectron2 runs it."""
    detector = TrainedDetector.load(config_file, weights)
    return Candidate(name, TORCH, Path(weights), detector.resize, detector.detect)


def onnx_candidate(name: str, file: str, threads: int) -> Candidate:
    """An exported detector."""
    detector = Detector(file, threads)
    return Candidate(name, ONNXRUNTIME, Path(file), detector.resize, detector.run)


def time_all(candidates: Sequence[Candidate], images: Sequence[np.ndarray], repeats: int) -> None:
    """Run all candidates in turn, so that what slows the machine slows them alike.

    The first round, in which memory is taken, does not count.
    """
    for repeat in trange(repeats + 1, unit="round"):
        for candidate in candidates:
            candidate.run(images[repeat % len(images)])
    for candidate in candidates:
        del candidate.seconds[0]


def report(candidates: Sequence[Candidate]) -> list[dict]:
    """A row of figures for each candidate: median, least and most milliseconds."""
    slowest = max(_median(x, 1) for x in candidates)
    return [
        {
            "detector": x.name,
            "runtime": x.backend,
            "file (MB)": round(x.file.stat().st_size / 2**20, 1),
            "resize (ms)": round(_median(x, 0), 1),
            "detect (ms)": round(_median(x, 1), 1),
            "least": round(min(y[1] for y in x.seconds) * 1000, 1),
            "most": round(max(y[1] for y in x.seconds) * 1000, 1),
            "images / s": round(1000 / (_median(x, 0) + _median(x, 1)), 1),
            "faster": f"{slowest / _median(x, 1):.1f}x",
        }
        for x in candidates
    ]


def as_markdown(rows: Sequence[dict]) -> str:
    """The table of :func:`report`."""
    return tabulate(rows, headers="keys", tablefmt="github")


def _median(candidate: Candidate, part: int) -> float:
    return 1000 * statistics.median(x[part] for x in candidate.seconds)
