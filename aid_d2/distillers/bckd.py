"""BCKD (Yang et al., *Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object
Detection*, ICCV 2023): every class is a binary task, in distillation as in detection.
"""

import torch
from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.iou import giou_loss
from ..layers.matching import count_positive, counted_anchors
from ..layers.prediction_losses import soft_quality_loss
from ..structures import DistillBatch, LevelShape, split_levels
from .base import DISTILLER_REGISTRY, Distiller


def localization_loss(
    boxes: Tensor, target_boxes: Tensor, logits: Tensor, target_logits: Tensor
) -> Tensor:
    """``max_k |q - p| GIoU(b, b_t)``, the weight without gradient.

    Args:
        boxes: b (..., 4) x1 y1 x2 y2.
        target_boxes: b_t (..., 4) of the teacher.
        logits: (..., K), p being their sigmoid.
        target_logits: (..., K) of the teacher, q being their sigmoid.

    Returns:
        (...)
    """
    weight = (target_logits.sigmoid() - logits.detach().sigmoid()).abs().amax(-1)
    return weight * giou_loss(boxes, target_boxes)


def on_levels_with_objects(matched_idxs: Tensor, levels: list[LevelShape]) -> Tensor:
    """(R,) bool: the anchors of levels that have a positive one.

    Args:
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
        levels: finest first.
    """
    found = [(x >= 0).any() for x in split_levels(matched_idxs, levels)]
    return torch.cat([x.expand(level.num_anchors) for x, level in zip(found, levels)])


@DISTILLER_REGISTRY.register()
class BCKD(Distiller):
    """Imitation of the teacher's scores and boxes where the scores differ.

    With p, b and q, b_t scores and decoded boxes of student and teacher, over all anchors but those
    that the student's assigner ignores or that are centered in padding:

        L_cls = sum sum_k |q - p| BCE(p, q) / N_pos
        L_box = sum max_k |q - p| GIoU(b, b_t) / N_pos

    N_pos are the positive anchors of the student's assigner, the mean over GPUs, at least 1. As
    released, levels that have none of them in the batch of a GPU are left out. Of a
    Faster R-CNN this imitates the RPN. AID's weight of an anchor's location multiplies both losses
    of the anchor.
    """

    needs_predictions = True

    @staticmethod
    def config():
        node = CN()
        # Factors on L_cls and L_box (BCKD).
        node.CLS_WEIGHT = 1.0
        node.BOX_WEIGHT = 4.0
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.node = node
        self.student = context.student

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        mine, theirs = batch.student.predictions, batch.teacher.predictions
        matched_idxs = self.student.matched_idxs(mine, batch.objects)
        num_positive = count_positive(matched_idxs)
        weight = batch.weights.per_anchor(mine.levels)
        weight = weight * counted_anchors(matched_idxs, mine.anchors, batch.objects)
        weight = weight * on_levels_with_objects(matched_idxs, mine.levels)
        cls = soft_quality_loss(mine.logits, theirs.logits)
        box = localization_loss(mine.boxes, theirs.boxes, mine.logits, theirs.logits)
        return {
            "cls": self.node.CLS_WEIGHT * (weight * cls).sum() / num_positive,
            "box": self.node.BOX_WEIGHT * (weight * box).sum() / num_positive,
        }
