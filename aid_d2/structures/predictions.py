"""Dense predictions in one form for every kind of detector."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from .levels import LevelShape


@dataclass
class DensePredictions:
    """What a dense head says of the R anchors in each of N images, float32.

    Attributes:
        levels: finest first. Their anchors follow each other in R, within a level in the order
            height, width, anchor.
        anchors: (R, 4) x1 y1 x2 y2, pixels of the network's input.
        logits: (N, R, K) of the classes, independent of each other (sigmoid); of an RPN K = 1.
        regression: (N, R, D) what `transform` turns into boxes.
        transform: the detector's box transform, with `apply_deltas` and `get_deltas`.
        centerness: (N, R) logits of FCOS; else None.
    """

    levels: list[LevelShape]
    anchors: Tensor
    logits: Tensor
    regression: Tensor
    transform: Any
    centerness: Tensor | None = None

    @cached_property
    def boxes(self) -> Tensor:
        """(N, R, 4) decoded boxes x1 y1 x2 y2, pixels, not clipped to the image."""
        regression = self.regression.flatten(0, 1)
        anchors = self.anchors.repeat(len(self.regression), 1)
        decoded = self.transform.apply_deltas(regression, anchors)
        return decoded.view(*self.regression.shape[:2], 4)
