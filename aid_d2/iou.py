"""The GIoU loss, without waiting for the device."""

import torch
from torch import Tensor

_EPS = 1e-7


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """``1 - GIoU`` of pairs of boxes (Rezatofighi et al., CVPR 2019), unreduced.

    fvcore's has the same values, but checks its input on the host.

    Args:
        boxes, targets: (..., 4) x1 y1 x2 y2, with x2 >= x1 and y2 >= y1.

    Returns:
        (...)
    """
    largest, smallest = torch.maximum(boxes, targets), torch.minimum(boxes, targets)
    inner = (smallest[..., 2:] - largest[..., :2]).clamp(min=0).prod(-1)
    outer = (largest[..., 2:] - smallest[..., :2]).prod(-1)
    union = sum((x[..., 2:] - x[..., :2]).prod(-1) for x in (boxes, targets)) - inner
    return 1 - inner / (union + _EPS) + (outer - union) / (outer + _EPS)
