"""The teacher's dense predictions as targets of other dense predictions.

Shared by BCKD, CrossKD and Dist2. The teacher's side is given without gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import DensePredictions
from .distributed import mean_over_gpus
from .iou import area
from .matching import count_positive


def soft_quality_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
    """``sum_k |p - q| BCE(p, q)``, p = sigmoid(logits), q = sigmoid(target_logits).

    The weight |p - q| has a gradient, as published.

    Args:
        logits: (..., K).
        target_logits: (..., K) of the teacher.

    Returns:
        (...), 0 where both agree.
    """
    target = target_logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((logits.sigmoid() - target).abs() * bce).sum(-1)


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """``-ln IoU`` (Yu et al., UnitBox, 2016), with which FCOS was published.

    Intersection and union have a square pixel more, as in FCOS: boxes may have no area.

    Args:
        boxes: (..., 4) x1 y1 x2 y2, pixels.
        targets: (..., 4).

    Returns:
        (...)
    """
    low = torch.maximum(boxes[..., :2], targets[..., :2])
    high = torch.minimum(boxes[..., 2:], targets[..., 2:])
    intersection = area(low, high)
    areas = [area(x[..., :2], x[..., 2:]) for x in (boxes, targets)]
    union = areas[0] + areas[1] - intersection
    return torch.log((union + 1) / (intersection + 1))


def distribution_divergence(logits: Tensor, target_logits: Tensor) -> Tensor:
    """``KL(q || p)`` of the distributions of box sides, the mean over the four sides.

    Args:
        logits: (..., 4(n+1)) of a distribution p over n+1 bins for each side.
        target_logits: of the teacher's q, the same shape.

    Returns:
        (...)
    """
    log_p, log_q = (
        F.log_softmax(x.unflatten(-1, (4, -1)), dim=-1) for x in (logits, target_logits)
    )
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1).mean(-1)


def mimic_losses(
    student: DensePredictions,
    teacher: DensePredictions,
    weight: Tensor,
    matched_idxs: Tensor,
    counted: Tensor,
    box_distance: Tensor,
    by_confidence: bool,
) -> tuple[Tensor, Tensor]:
    """CrossKD's losses of predictions that are to equal the teacher's (Wang et al., CVPR 2024).

    With p and q the scores, c = max_k q of an anchor and W its weight:

        L_cls = sum W sum_k |p - q| BCE(p, q) / N_pos,   L_box = sum W c d(b, b_t) / N_box

    N_box is sum c in GFL, and else N_pos. For FCOS the released code divides both by the sum of
    the centerness targets instead, and counts all anchors. Centerness has no part in it.

    Args:
        student: what is optimized.
        teacher: its predictions on the same anchors.
        weight: W (N, R).
        matched_idxs: (N, R) as in :class:`UnreducedLosses`, by which N_pos is counted.
        counted: (N, R) bool, the anchors that take part in the sums.
        box_distance: d (N, R), see :meth:`DetectorWrapper.box_distance`.
        by_confidence: whether N_box is sum c.

    Returns:
        L_cls () and L_box (), without their factors.
    """
    num_positive = count_positive(matched_idxs)
    confidence = counted * teacher.logits.sigmoid().amax(-1)
    cls = counted * soft_quality_loss(student.logits, teacher.logits)
    num_boxes = num_positive
    if by_confidence:
        num_boxes = mean_over_gpus(confidence.sum()).clamp(min=1)
    box = (weight * confidence * box_distance).sum() / num_boxes
    return (weight * cls).sum() / num_positive, box
