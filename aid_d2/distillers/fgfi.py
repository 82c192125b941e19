"""Fine-grained feature imitation (Wang et al., *Distilling Object Detectors with Fine-grained
Feature Imitation*, CVPR 2019).
"""

from typing import Any

import torch
from torch import Tensor

from detectron2.config import CfgNode as CN
from detectron2.structures import Boxes

from ..layers.adapters import level_adapters
from ..layers.distance import squared_error
from ..layers.iou import pairwise_iou
from ..structures import DistillBatch, Objects
from .base import DISTILLER_REGISTRY, Distiller


def near_objects(boxes: Tensor, anchors: Boxes, threshold: float) -> Tensor:
    """Anchors whose IoU with some object is above ``threshold`` x the largest of that object.

    Args:
        boxes: (m, 4) of the objects of one image.
        anchors: R boxes.
        threshold: psi of the paper.

    Returns:
        (R,) bool
    """
    iou = pairwise_iou(boxes, anchors.tensor)
    return (iou > threshold * iou.amax(1, keepdim=True)).any(0)


@DISTILLER_REGISTRY.register()
class FGFI(Distiller):
    """Imitation of the teacher's maps near objects,

        L = 1 / (2 N) sum W I (T - f(S))^2

    with f a 3x3 convolution per level, I the locations that have an anchor of the student near an
    object, and N their number in the batch, at least 1. AID's map W weights each squared
    difference.

    The paper has one map. Over a pyramid sum and N run over all levels, and so does the largest IoU
    of an object: it is imitated on the levels whose anchors have its size, not on each level where
    the anchors are wrong for it. What the anchors are decides where that is: those of RetinaNet and
    of an RPN cover an object's surroundings, as does GFL's one square of 8 strides; FCOS's squares
    of one stride choose the few locations inside the object on the levels whose stride comes
    nearest to its size.
    """

    supports_bf16 = True

    @staticmethod
    def config():
        node = CN()
        # lambda of the paper.
        node.WEIGHT = 0.01
        # psi of the paper: an anchor is near an object from this share of the object's largest IoU.
        node.THRESHOLD = 0.5
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        if context.student.anchor_generator is None:
            raise ValueError(
                "DISTILL.METHODS: FGFI imitates where the student's anchors are near objects, and "
                f"a {type(context.student.model).__name__} student has none that are known. "
                "Register a DetectorWrapper with its anchor_generator, or use a method that needs "
                "no anchors, such as Hint or PKD."
            )
        self.weight = node.WEIGHT
        self.threshold = node.THRESHOLD
        self.pairs = context.pairs
        self.student = context.student
        self.adapters = level_adapters(context.pairs, 3)

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        masks = self._masks(batch.student.features, batch.objects)
        total: Any = sum(
            squared_error(
                self.adapters[stride](s),
                batch.teacher.features[stride],
                batch.weights.maps[stride],
                masks[stride],
            )
            for stride, s in batch.student.features.items()
        )
        count = torch.stack([mask.sum() for mask in masks.values()]).sum().clamp(min=1)
        return {"feature": self.weight * total / (2 * count)}

    def _masks(self, features: dict[int, Tensor], objects: Objects) -> dict[int, Tensor]:
        """I (N, 1, H, W) of each level."""
        anchors = self._anchors(features)
        together = Boxes.cat(anchors)
        near = torch.stack(
            [
                near_objects(boxes, together, self.threshold)
                for boxes in objects.boxes.split(objects.counts)
            ]
        )
        levels = near.split([len(x) for x in anchors], dim=1)
        return {
            stride: level.view(len(x), 1, *x.shape[-2:], -1).any(-1)
            for (stride, x), level in zip(features.items(), levels)
        }

    def _anchors(self, features: dict[int, Tensor]) -> list[Boxes]:
        # The generator wants a map for each level of the student; that of one without a pair is
        # made up, and its anchors are not used.
        unpaired = torch.empty(1, 1, 1, 1)
        maps = [features.get(level.stride, unpaired) for level in self.student.levels]
        anchors = self.student.anchor_generator(maps)
        return [anchors[pair.position] for pair in self.pairs]
