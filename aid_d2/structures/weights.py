"""AID's weights, and how a distillation method reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from .levels import LevelShape


@dataclass
class DistillWeights:
    """AID's weights: per stride a detached map (N, 1, H, W) in (0, 1]; 1 is full strength."""

    maps: dict[int, Tensor]

    @classmethod
    def full(cls, features: dict[int, Tensor]) -> DistillWeights:
        """Weight 1 everywhere, for maps (N, C, H, W) per stride: distillation without AID."""
        return cls.constant(features, next(iter(features.values())).new_ones(()))

    @classmethod
    def constant(cls, features: dict[int, Tensor], weight: Tensor) -> DistillWeights:
        """One weight () everywhere, for maps (N, C, H, W) per stride."""
        return cls({s: weight.expand(len(x), 1, *x.shape[-2:]) for s, x in features.items()})

    def with_full(self, images: Sequence[int]) -> DistillWeights:
        """The same, with weight 1 in some of the images."""
        if not images:
            return self
        maps = {stride: x.clone() for stride, x in self.maps.items()}
        for x in maps.values():
            for i in images:  # a list would be copied to the device, which waits
                x[i] = 1.0
        return DistillWeights(maps)

    def pooled(self, stride: int, attention: Tensor) -> Tensor:
        """One weight per image, for terms that pool over space: the attention-weighted mean.

        Args:
            stride: the level.
            attention: (N, 1, H, W), not negative, its sum over space positive.

        Returns:
            (N, 1)
        """
        weights = self.maps[stride].flatten(1)
        share = attention.flatten(1) / attention.flatten(1).sum(1, keepdim=True)
        # Averaging the differences to one value keeps a constant map exactly constant.
        anchor = weights[:, :1]
        return anchor + ((weights - anchor) * share).sum(1, keepdim=True)

    def per_anchor(self, levels: list[LevelShape]) -> Tensor:
        """One weight per anchor, that of its location.

        Args:
            levels: of a dense prediction on these maps.

        Returns:
            (N, R), in the order of :class:`UnreducedLosses`.
        """
        return torch.cat(
            [
                self.maps[level.stride].flatten(1).repeat_interleave(level.anchors, dim=1)
                for level in levels
            ],
            dim=1,
        )

    def per_box(self, boxes: list[Tensor]) -> Tensor:
        """One weight per box: the mean inside it, at the level that suits its size.

        Args:
            boxes: of each of the N images (B_i, 4), pixels of the network's input.

        Returns:
            (sum of B_i,)
        """
        # As in `pooled`: a constant map stays exactly constant.
        reference = next(iter(self.maps.values()))[:, 0, 0, 0]
        difference = {stride: x - reference.view(-1, 1, 1, 1) for stride, x in self.maps.items()}
        mean = pool_boxes(difference, boxes, size=1, sampling_ratio=0)
        counts = torch.tensor([len(x) for x in boxes]).to(reference.device, non_blocking=True)
        base = reference.repeat_interleave(counts, output_size=len(mean))
        return base + mean.flatten()


def pool_boxes(
    features: dict[int, Tensor], boxes: list[Tensor], size: int, sampling_ratio: int
) -> Tensor:
    """ROIAlign of each box at the pyramid level that suits its size (FPN, Lin et al., eq. 1).

    Args:
        features: maps (N, C, H, W) per stride, finest first; strides double from level to level.
        boxes: of each of the N images (B_i, 4), pixels of the network's input.
        size: of the result.
        sampling_ratio: samples along each side of a bin; 0 takes as many as the bin has cells.

    Returns:
        (sum of B_i, C, size, size)
    """
    pooler = ROIPooler(size, [1 / stride for stride in features], sampling_ratio, "ROIAlignV2")
    return pooler(list(features.values()), [Boxes(x) for x in boxes])
