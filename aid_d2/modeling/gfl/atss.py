"""ATSS: which anchors are positive for which object (Zhang et al., CVPR 2020)."""

import torch
from torch import Tensor

from detectron2.structures import Boxes

from ...layers.iou import pairwise_iou

# A center nearer to the border of an object than this, in pixels, is not inside it.
_MARGIN = 0.01


@torch.no_grad()
def atss_match(
    anchors: Tensor, anchors_per_level: list[int], boxes: Tensor, candidates: int = 9
) -> Tensor:
    """Adaptive training sample selection (ATSS, algorithm 1).

    The candidates of an object are, on each level, the anchors with the nearest centers. Of these
    are positive those whose IoU with the object reaches the mean plus the standard deviation over
    all its candidates, and whose center is inside it. An anchor that is positive for several
    objects goes to the one of highest IoU, among equal ones to the first.

    Args:
        anchors: (R, 4) x1 y1 x2 y2, pixels, level after level.
        anchors_per_level: how many of them each level has.
        boxes: (M, 4) objects of one image; M may be 0.
        candidates: number of candidates of an object on each level.

    Returns:
        (R,) int64, index into boxes; -1 for background.
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    centres = Boxes(anchors).get_centers()
    distance = torch.cdist(
        Boxes(boxes).get_centers(), centres, compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest, start = [], 0
    for level in distance.split(anchors_per_level, dim=1):
        count = min(candidates, level.shape[1])
        nearest.append(level.topk(count, dim=1, largest=False).indices + start)
        start += level.shape[1]
    nearest = torch.cat(nearest, dim=1)

    iou = pairwise_iou(boxes, anchors)
    candidate_iou = iou.gather(1, nearest)
    threshold = candidate_iou.mean(1, keepdim=True)
    if nearest.shape[1] > 1:  # the unbiased deviation of a single value does not exist
        threshold = threshold + candidate_iou.std(1, keepdim=True)
    x, y = centres[nearest].unbind(-1)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    to_border = torch.stack([x - x1, y - y1, x2 - x, y2 - y]).amin(0)
    positive = (candidate_iou >= threshold) & (to_border > _MARGIN)

    claim = torch.full_like(iou, -1.0)
    claim.scatter_(1, nearest, torch.where(positive, candidate_iou, -1.0))
    best, matched_idxs = claim.max(0)
    return torch.where(best >= 0, matched_idxs, -1)
