"""The programs (.pt2) of `aid-d2 export`, run by PyTorch and torchvision without Detectron2."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  a program calls its operators
from torch import Tensor

from . import runtime
from .graph import Graph

_METADATA = "metadata.json"


def write_program(
    graph: Graph, example: tuple[Tensor, Tensor], metadata: Mapping[str, Any], path: Path
) -> None:
    """Write a graph as a program of `torch.export`.

    Args:
        graph: in eval mode.
        example: its inputs.
        metadata: what json can hold.
        path: of the file, which may have any name.
    """
    program = torch.export.export(graph, example, strict=False)  # the default since torch 2.8
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={_METADATA: json.dumps(metadata)})


class ProgramDetector(runtime.Detector):
    """An exported program.

    Args:
        path: of the .pt2 file.

    Raises:
        ValueError: the file is not of `aid-d2 export`.
    """

    runtime = "PyTorch program"

    def __init__(self, path: str):
        self.path = path
        extra = {_METADATA: ""}
        with open(path, "rb") as file:
            self.module = torch.export.load(file, extra_files=extra).module()
        self.metadata = json.loads(extra[_METADATA] or "{}")
        runtime.require_metadata(path, self.metadata)

    def infer(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tensors = torch.from_numpy(inputs["image"]), torch.from_numpy(inputs["valid"])
        with torch.no_grad():
            return tuple(x.numpy() for x in self.module(*tensors))
