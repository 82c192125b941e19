"""Areas of boxes and the GIoU loss, without waiting for the device."""

import torch
from torch import Tensor

_EPS = 1e-7


def area(low: Tensor, high: Tensor) -> Tensor:
    """Of boxes between two corners (..., 2); 0 where they are the wrong way round.

    Returns:
        (...)
    """
    # A product of two: that of `prod` along a dimension waits for the device in its gradient.
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """``1 - GIoU`` of pairs of boxes (Rezatofighi et al., CVPR 2019), unreduced.

    fvcore's has the same values, but checks its input on the host.

    Args:
        boxes, targets: (..., 4) x1 y1 x2 y2, with x2 >= x1 and y2 >= y1.

    Returns:
        (...)
    """
    largest, smallest = torch.maximum(boxes, targets), torch.minimum(boxes, targets)
    inner = area(largest[..., :2], smallest[..., 2:])
    outer = area(smallest[..., :2], largest[..., 2:])
    union = sum(area(x[..., :2], x[..., 2:]) for x in (boxes, targets)) - inner
    return 1 - inner / (union + _EPS) + (outer - union) / (outer + _EPS)
