"""The mathematics of GFL (Li et al., NeurIPS 2020): its losses, and boxes as distributions."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layers.distributed import mean_over_gpus

# Side of an anchor in strides of its level.
ANCHOR_SIZE = 8


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """``QFL = |y - s|^beta BCE(s, y)`` with s = sigmoid(logits) (GFL eq. 2).

    Args:
        logits: any shape.
        quality: y in [0, 1], of the same shape.
        beta: 2 in the paper.

    Returns:
        the same shape, unreduced.
    """
    error = (quality - logits.sigmoid()).abs()
    return error**beta * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``DFL = (i+1 - y) CE(i) + (y - i) CE(i+1)``, i = floor(y) (GFL eq. 6).

    Args:
        logits: (..., n+1) of a distribution over 0, 1, ..., n.
        target: (...) y in [0, n).

    Returns:
        (...) unreduced.
    """
    low = target.floor()
    index = low.long()[..., None]
    log_probability = F.log_softmax(logits, dim=-1)
    at_low = log_probability.gather(-1, index).squeeze(-1)
    at_high = log_probability.gather(-1, index + 1).squeeze(-1)
    return (target - low - 1) * at_low + (low - target) * at_high


class BoxDistribution:
    """Boxes as four distributions of the distance from an anchor's center to a side (GFL eq. 5).

    It has the interface of Detectron2's box transforms. Distances are left, top, right, bottom, in
    strides of the anchor's level.

    Args:
        reg_max: n of a distribution over 0, 1, ..., n.
    """

    def __init__(self, reg_max: int):
        self.reg_max = reg_max

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes at the expected distances.

        Args:
            deltas: (..., 4(n+1)) logits.
            boxes: (..., 4) anchors.

        Returns:
            (..., 4) x1 y1 x2 y2.
        """
        probability = deltas.unflatten(-1, (4, self.reg_max + 1)).softmax(-1)
        bins = torch.arange(self.reg_max + 1, dtype=deltas.dtype, device=deltas.device)
        centre, stride = _centre_and_stride(boxes)
        # A product of matrices would run in half precision under autocast.
        distances = (probability * bins).sum(-1) * stride
        left_top, right_bottom = distances.chunk(2, dim=-1)
        return torch.cat([centre - left_top, centre + right_bottom], dim=-1)

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Distances (..., 4) from anchors (..., 4) to the sides of boxes (..., 4)."""
        centre, stride = _centre_and_stride(src_boxes)
        left_top, right_bottom = target_boxes.chunk(2, dim=-1)
        return torch.cat([centre - left_top, right_bottom - centre], dim=-1) / stride


def location_cells(anchors: Tensor) -> Tensor:
    """The square of one stride around the center of each of GFL's anchors (..., 4).

    An anchor is far larger than the smallest objects it serves; its cell says where it is.
    """
    centre, stride = _centre_and_stride(anchors)
    return torch.cat([centre - stride / 2, centre + stride / 2], dim=-1)


def _centre_and_stride(anchors: Tensor) -> tuple[Tensor, Tensor]:
    low, high = anchors.chunk(2, dim=-1)
    return (low + high) / 2, (high - low)[..., :1] / ANCHOR_SIZE


class AnchorLosses(NamedTuple):
    """Unreduced losses of N images with R anchors each, P of all being positive.

    Attributes:
        positive: (N, R) bool.
        qfl: (N, R) quality focal loss, summed over classes; 0 where ignored.
        giou: (P,) GIoU loss.
        dfl: (P,) distribution focal loss, mean over the four sides.
        weight: (P,) q = max_c sigmoid(cls), the weight of both.
    """

    positive: Tensor
    qfl: Tensor
    giou: Tensor
    dfl: Tensor
    weight: Tensor

    def divisors(self) -> tuple[Tensor, Tensor]:
        """N_pos of the quality focal loss and sum q of the others: means over GPUs, at least 1."""
        sums = torch.stack([self.positive.sum().to(self.weight), self.weight.sum()])
        return mean_over_gpus(sums).clamp(min=1).unbind()
