"""What a detector's losses are before they are summed up."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .levels import LevelShape, split_levels
from .objects import Objects

# Values of `UnreducedLosses.matched_idxs` for anchors that are positive for no object.
BACKGROUND, IGNORED = -1, -2


@dataclass
class UnreducedLosses:
    """A detector's losses on a batch, unreduced: N images, L levels, R anchors in each image.

    Attributes:
        levels: finest first. Their anchors follow each other in R, within a level in the order
            height, width, anchor.
        cls: (N, R) classification loss of an anchor, summed over classes; 0 where ignored.
        box: (N, R) box loss of a positive anchor; 0 elsewhere.
        matched_idxs: (N, R) int64, the object an anchor is positive for, BACKGROUND or IGNORED.
        factor: (N, R) what the detector's own loss multiplies cls + box of the anchor by: 1, the
            probability that its sampler draws it, or, where that loss has other terms, their ratio.
        image_normalizer: (N,) divisor of the sum over an image in the detector's own loss.
        batch_normalizer: () the same for the sum over the batch.
        background: (N, L) normalized loss of the background.
        objects: the ground truth.
        roi: (M,) loss of the second stage on each object; None for a one-stage detector.
        proposals: () the second stage's own loss on `Objects.proposals`, where it was judged on
            them; `roi` is then that of masks alone.
    """

    levels: list[LevelShape]
    cls: Tensor
    box: Tensor
    matched_idxs: Tensor
    factor: Tensor
    image_normalizer: Tensor
    batch_normalizer: Tensor
    background: Tensor
    objects: Objects
    roi: Tensor | None = None
    proposals: Tensor | None = None

    def split(self, anchors: Tensor) -> list[Tensor]:
        """Cut (N, R) values into levels, each (N, H, W, A)."""
        return split_levels(anchors, self.levels)

    def sum_by_object(self, anchors: Tensor) -> Tensor:
        """Sum (N, R) values over the positive anchors of each object, (M,)."""
        num_objects = len(self.objects.boxes)
        # Anchors without an object fall into one bin more, which keeps all shapes fixed.
        bins = torch.where(self.matched_idxs >= 0, self.matched_idxs, num_objects).flatten()
        return anchors.new_zeros(num_objects + 1).index_add(0, bins, anchors.flatten())[:-1]

    @property
    def anchor_losses(self) -> Tensor:
        """(N, R) what each anchor adds to the detector's own dense loss, before its normalizer."""
        return self.factor * (self.cls + self.box)

    @property
    def dense(self) -> Tensor:
        """() the detector's own dense loss."""
        return self.anchor_losses.sum() / self.batch_normalizer

    @property
    def mean_roi(self) -> Tensor:
        """() the loss of the second stage, the mean over the objects."""
        return self.roi.sum() / max(len(self.roi), 1)

    @property
    def second_stage(self) -> Tensor:
        """() the loss of the second stage, on objects and on proposals."""
        return self.mean_roi if self.proposals is None else self.mean_roi + self.proposals

    @cached_property
    def num_positives(self) -> Tensor:
        """(M,) number of positive anchors of each object."""
        return self.sum_by_object(torch.ones_like(self.cls))

    @property
    def known_objects(self) -> Tensor:
        """(M,) whether there is a loss on an object: a one-stage detector says nothing of one that
        no anchor is positive for.
        """
        known = self.num_positives > 0
        return known if self.roi is None else torch.ones_like(known)
