"""Areas and overlaps of boxes and the GIoU loss, without waiting for the device."""

import torch
from torch import Tensor

_EPS = 1e-7
_BOXES_AT_ONCE = 16


def area(low: Tensor, high: Tensor) -> Tensor:
    """Of boxes between two corners (..., 2); 0 where they are the wrong way round.

    Returns:
        (...)
    """
    # A product of two: that of `prod` along a dimension waits for the device in its gradient.
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


@torch.no_grad()
def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each box with each other one, without a gradient.

    Detectron2's has the same values, but takes several times as long on a CPU, where most of the
    time goes into memory.

    Args:
        boxes: (m, 4) x1 y1 x2 y2.
        others: (R, 4) likewise.

    Returns:
        (m, R); 0 where both boxes have no area.
    """
    iou = boxes.new_empty(len(boxes), len(others))
    # A GPU takes all at once; what is between here and the result fits into the cache of a CPU.
    step = _BOXES_AT_ONCE if boxes.device.type == "cpu" else max(len(boxes), 1)
    u1, v1, u2, v2 = others.t().contiguous()
    area_of_others = (u2 - u1) * (v2 - v1)
    for some, result in zip(boxes.split(step), iou.split(step)):
        x1, y1, x2, y2 = some[:, :, None].unbind(1)
        width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
        height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0)
        inner = width.mul_(height)
        union = ((x2 - x1) * (y2 - y1) + area_of_others).sub_(inner)
        torch.div(inner, union.clamp_(min=torch.finfo(union.dtype).tiny), out=result)
    return iou


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
