"""A file of a detector, compared with PyTorch before it is kept."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from tqdm import tqdm

from ..modeling.precision import fold_norms
from . import runtime
from .detector import TrainedDetector
from .files import kept_if_whole
from .graph import Graph, build_graph
from .program import ProgramDetector, write_program

logger = logging.getLogger(__name__)

OPSET = 18
# What the file and PyTorch may differ by on a detection, in pixels and in score.
BOX_TOLERANCE = 0.5
SCORE_TOLERANCE = 5e-3
# Share of PyTorch's detections that have to be found again: candidates of one score change places.
LEAST_FOUND = 0.99


@dataclass
class Parity:
    """How an exported file compares with Detectron2 in PyTorch.

    Attributes:
        images: on how many.
        detections: of PyTorch on them.
        exported: of the file on them.
        found: how many of PyTorch's the file has, within the tolerances.
        box: largest difference of the found ones, in pixels.
        score: largest difference of their scores.
    """

    images: int = 0
    detections: int = 0
    exported: int = 0
    found: int = 0
    box: float = 0.0
    score: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.found} of {self.detections} detections of PyTorch on {self.images} images are "
            f"among the {self.exported} of the file; largest differences {self.box:.1e} px, score "
            f"{self.score:.1e}"
        )


def export_file(
    detector: TrainedDetector,
    output: Path,
    images: Sequence[np.ndarray],
    canvas: Sequence[int],
    topk: int = 0,
    suppressed: bool = True,
) -> Parity:
    """Write a detector as .onnx, with `run_onnx.py` beside it, or as a program of PyTorch, .pt2.

    Args:
        detector: whose batch norms are folded here.
        output: the file, whose name ends in .onnx or .pt2.
        images: (H, W, 3) uint8 BGR, on which the file is compared with Detectron2.
        canvas: (H, W) that images are padded to once they are resized.
        topk: see :class:`aid_d2.deploy.graph.Graph`; if given, the file may detect less.
        suppressed: see there.

    Raises:
        NotImplementedError: the detector is of a kind that cannot be exported.
        ValueError: the canvas does not fit, nothing is detected in the images, or the file does not
            compute what PyTorch does; then there is no file.
    """
    divisor = max(detector.model.backbone.size_divisibility, 1)
    if any(side % divisor for side in canvas):
        raise ValueError(f"--size {canvas} is not a multiple of {divisor}, which this one needs.")
    sizes = [image.shape[:2] for image in images]
    resized = [detector.resize(image) for image in images]
    for image in resized:
        if any(have > side for have, side in zip(image.shape, canvas)):
            raise ValueError(
                f"--size {canvas[0]} {canvas[1]} is smaller than an image resized for the test, "
                f"{image.shape[0]} x {image.shape[1]}: choose {detector.canvas(sizes)}."
            )
    more = sum(detector.canvas([size]) != tuple(canvas) for size in sizes)
    if more:
        logger.warning(
            f"{more} of {len(resized)} images are padded further than Detectron2 pads them, which "
            "changes what a detector sees in them."
        )
    fold_norms(detector.model)
    graph = build_graph(detector.model, tuple(canvas), topk, suppressed)
    blank = torch.zeros(*canvas, 3, dtype=torch.uint8), torch.tensor(canvas)
    write, run = FORMATS[output.suffix]
    with kept_if_whole(output) as scratch:
        write(graph, blank, _metadata(detector, canvas, graph), scratch)
        parity = compare(detector, run(str(scratch)), resized)
        if not parity.detections:
            raise ValueError(
                f"The detector finds nothing in the {len(resized)} images, so that file and "
                "PyTorch cannot be compared: name others by --images, or more by --count."
            )
        expected = parity.exported if topk else max(parity.detections, parity.exported)
        if parity.found < LEAST_FOUND * expected:
            raise ValueError(
                f"The exported file differs from PyTorch, and is not kept: {parity}. Of a detector "
                f"with more than {graph.topk} candidates --topk lets the file see more."
            )
    if run is runtime.Detector:
        _write_script(output.with_name("run_onnx.py"))
    return parity


def _write_script(path: Path) -> None:
    script = Path(runtime.__file__).read_bytes()
    if path.exists() and path.read_bytes() != script:
        logger.warning(f"{path} is another one, and is left as it is: remove it to have it anew.")
        return
    path.write_bytes(script)


def write_onnx(
    graph: Graph, example: tuple[Tensor, Tensor], metadata: Mapping[str, Any], path: Path
) -> None:
    """Write a graph in ONNX; arguments as of :func:`write_program`."""
    proto = torch.onnx.export(
        graph,
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=["image", "valid"],
        output_names=["boxes", "scores", "classes"],
        verbose=False,
    ).model_proto
    onnx.helper.set_model_props(proto, {key: json.dumps(x) for key, x in metadata.items()})
    onnx.save(proto, path)


# By the end of a file's name, what writes it and what runs it.
FORMATS = {".onnx": (write_onnx, runtime.Detector), ".pt2": (write_program, ProgramDetector)}


def compare(
    detector: TrainedDetector, exported: runtime.Detector, images: Sequence[np.ndarray]
) -> Parity:
    """Run Detectron2 and a file on resized images, padded alike."""
    result = Parity(images=len(images))
    for image in tqdm(images, unit="image"):
        both = detector.arrays(image, exported.metadata["canvas"]), exported.run(image)
        ours, theirs = ([torch.from_numpy(x[found[1] > 0]) for x in found] for found in both)
        _match(ours, theirs, result)
    return result


def _match(ours: list[Tensor], theirs: list[Tensor], result: Parity) -> None:
    """Add detections (boxes, scores, classes) of one image to the result."""
    result.detections += len(ours[0])
    result.exported += len(theirs[0])
    if not len(theirs[0]):
        return
    # Boxes that are equal once they are cut to the image differ by their scores alone.
    box = (ours[0][:, None] - theirs[0]).abs().amax(-1)
    score = (ours[1][:, None] - theirs[1]).abs()
    alike = (box < BOX_TOLERANCE) & (ours[2][:, None] == theirs[2])
    at = torch.where(alike, score, torch.inf).argmin(1, keepdim=True)
    box, score, alike = (x.gather(1, at).squeeze(1) for x in (box, score, alike))
    found = alike & (score < SCORE_TOLERANCE)
    result.found += int(found.sum())
    if found.any():
        result.box = max(result.box, float(box[found].max()))
        result.score = max(result.score, float(score[found].max()))


def _metadata(detector: TrainedDetector, canvas: Sequence[int], graph: Graph) -> dict[str, Any]:
    cfg = detector.cfg
    parameters, macs = detector.complexity(canvas)
    return {
        "classes": detector.class_names,
        "input_format": cfg.INPUT.FORMAT,
        "canvas": list(canvas),
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "nms": None if graph.suppressed else graph.nms,
        "least_score": graph.least_score,
        "detector": type(detector.model).__name__,
        "parameters": parameters,
        "macs": macs,
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "weights": detector.weights,
    }


def slim_checkpoint(detector: TrainedDetector, output: Path) -> None:
    """Write the weights alone, and the names of the classes where they are known."""
    names = {"class_names": detector.class_names} if detector.named else {}
    with kept_if_whole(output) as scratch:
        torch.save({"model": detector.model.state_dict(), **names}, scratch)
