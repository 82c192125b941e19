"""DeFeat (Guo et al., *Distilling Object Detectors via Decoupled Features*, CVPR 2021)."""

from typing import Any

import torch
from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.adapters import level_adapters
from ..layers.cells import smallest_objects
from ..structures import DistillBatch
from .base import DISTILLER_REGISTRY, Distiller


def masked_mean(student: Tensor, teacher: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """``sum W M (T - S)^2 / (C sum M)`` of each image, averaged over images; 0 where M is empty.

    Args:
        student: S (N, C, H, W), adapted.
        teacher: T of the same shape.
        weight: W of AID (N, 1, H, W).
        mask: M (N, 1, H, W) bool.
    """
    difference = (weight * mask * (teacher - student).square()).sum((1, 2, 3))
    cells = mask.sum((1, 2, 3)).clamp(min=1)
    return (difference / (student.shape[1] * cells)).mean()


def object_levels(boxes: Tensor, num_levels: int) -> Tensor:
    """The level that an object counts on: the finest below 112 pixels, and the next one for each
    doubling of its size sqrt((w + 1) (h + 1)), as released.

    Args:
        boxes: (M, 4), pixels of the network's input.
        num_levels: finest first.

    Returns:
        (M,) int64
    """
    size = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1).sqrt()
    return torch.log2(size / 56 + 1e-6).floor().clamp(0, num_levels - 1).long()


@DISTILLER_REGISTRY.register()
class DeFeat(Distiller):
    """Imitation of what lies in the boxes of objects and of what lies outside, apart:

        L = a mean_in W (T - f(S))^2 + b mean_out W (T - f(S))^2

    summed over levels, f a 1x1 convolution per level. Each mean is over the cells of an image that
    lie in a box, or in none, and over channels; then over images. As released, an object counts on
    the level of its size (:func:`object_levels`), and is background on the others. The background,
    which the task teaches little about, weighs more than the objects. AID's map W weights each
    squared difference.

    Padding and regions to be ignored are background too. The released code has 3x3 convolutions,
    and its means are over the batch.

    The paper also imitates the class scores of proposals, of objects and background apart; here
    :class:`~aid_d2.distillers.dkd.DKD` does that for the box head.
    """

    supports_bf16 = True

    @staticmethod
    def config():
        node = CN()
        # a and b: 3 and 12 in the authors' code (Faster R-CNN on VOC), which divides them by 2 and
        # by the number of levels, 5.
        node.FOREGROUND_WEIGHT = 0.3
        node.BACKGROUND_WEIGHT = 1.2
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.weights = {"foreground": node.FOREGROUND_WEIGHT, "background": node.BACKGROUND_WEIGHT}
        self.adapters = level_adapters(context.pairs, 1)

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        parts: dict[str, Any] = dict.fromkeys(self.weights, 0.0)
        level_of = object_levels(batch.objects.boxes, len(batch.levels))
        for i, (stride, s) in enumerate(batch.student.features.items()):
            s, t = self.adapters[stride](s), batch.teacher.features[stride]
            (index,) = smallest_objects(batch.objects, [batch.levels[i]], level_of == i)
            inside = index[:, None] >= 0
            for part, mask in (("foreground", inside), ("background", ~inside)):
                parts[part] += masked_mean(s, t, batch.weights.maps[stride], mask)
        return {part: self.weights[part] * x for part, x in parts.items()}
