"""What a detector's losses are before they are summed up, and the objects that they are about."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from detectron2.structures import Instances

# Values of `UnreducedLosses.matched_idxs` for anchors that are positive for no object.
BACKGROUND, IGNORED = -1, -2


@dataclass
class Objects:
    """The M ground-truth objects of a batch, images one after the other.

    Attributes:
        boxes: (M, 4) x1 y1 x2 y2, pixels of the network's input.
        classes: (M,) int64.
        counts: number of objects in each of the N images.
        ignored: per image the boxes (I, 4) of its ignore regions, where nothing is known.
        image_sizes: (height, width) of each image, without padding.
        assignments: of anchors to these objects, (N, R) each, by the rule they are made by;
            not to be written to, since they are shared.
    """

    boxes: Tensor
    classes: Tensor
    counts: list[int]
    ignored: list[Tensor]
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    assignments: dict[Hashable, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_instances(cls, instances: list[Instances], device: torch.device) -> "Objects":
        """From Detectron2's `gt_boxes` and `gt_classes` (-1: ignore region), one per image."""
        real = [x[x.gt_classes >= 0] for x in instances]
        ignored = [x[x.gt_classes < 0] for x in instances]
        return cls(
            boxes=torch.cat([x.gt_boxes.tensor for x in real]).to(device, non_blocking=True),
            classes=torch.cat([x.gt_classes for x in real]).to(device, non_blocking=True),
            counts=[len(x) for x in real],
            ignored=[x.gt_boxes.tensor.to(device, non_blocking=True) for x in ignored],
            image_sizes=[x.image_size for x in instances],
        )

    @cached_property
    def counts_on_device(self) -> Tensor:
        """(N,) int64"""
        return torch.tensor(self.counts).to(self.boxes.device, non_blocking=True)

    @cached_property
    def image_index(self) -> Tensor:
        """(M,) int64, the image each object is in."""
        images = torch.arange(len(self.counts), device=self.boxes.device)
        return images.repeat_interleave(self.counts_on_device, output_size=len(self.boxes))

    @cached_property
    def by_area(self) -> Tensor:
        """(M,) int64, indices of the objects: images one after the other, the smallest box first."""
        area = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1)
        order = torch.argsort(area, stable=True)
        return order[torch.argsort(self.image_index[order], stable=True)]


@dataclass(frozen=True)
class LevelShape:
    """A level of a dense prediction: `anchors` boxes at each of height x width locations."""

    stride: int
    height: int
    width: int
    anchors: int

    @property
    def num_anchors(self) -> int:
        """Of an image."""
        return self.height * self.width * self.anchors


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
        background: (N, L) normalised loss of the background.
        objects: the ground truth.
        roi: (M,) loss of the second stage on each object; None for a one-stage detector.
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
        """(N, R) what each anchor adds to the detector's own dense loss, before its normaliser."""
        return self.factor * (self.cls + self.box)

    @property
    def mean_roi(self) -> Tensor:
        """() the loss of the second stage, the mean over the objects."""
        return self.roi.sum() / max(len(self.roi), 1)

    @cached_property
    def num_positives(self) -> Tensor:
        """(M,) number of positive anchors of each object."""
        return self.sum_by_object(torch.ones_like(self.cls))

    @property
    def known_objects(self) -> Tensor:
        """(M,) whether there is a loss on an object: a one-stage detector says nothing of one that no
        anchor is positive for.
        """
        known = self.num_positives > 0
        return known if self.roi is None else torch.ones_like(known)


def split_levels(anchors: Tensor, levels: list[LevelShape]) -> list[Tensor]:
    """Cut (N, R) values into levels, each (N, H, W, A)."""
    parts = anchors.split([x.num_anchors for x in levels], dim=1)
    return [p.view(len(p), x.height, x.width, x.anchors) for p, x in zip(parts, levels)]
