"""Which anchors are positive for which object."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher

from ...iou import pairwise_iou
from ...losses import BACKGROUND, IGNORED, Objects
from ..ignore_regions import inside_regions

# Of each image the labels (R,) of the anchors, and their objects' boxes (R, 4).
Labels = tuple[list[Tensor], list[Tensor]]


def assign(match: Callable[[Tensor], Tensor], anchors: Tensor, objects: Objects) -> Tensor:
    """Assign the anchors of each image, and leave out the background in ignore regions.

    Args:
        match: of the boxes (m, 4) of one image: for every anchor the index into them, BACKGROUND
            or IGNORED.
        anchors: (R, 4).
        objects: ground truth of N images.

    Returns:
        (N, R) int64: the object, BACKGROUND or IGNORED.
    """
    per_image, start = [], 0
    for boxes, regions in zip(objects.boxes.split(objects.counts), objects.ignored):
        index = match(boxes)
        matched_idxs = torch.where(index >= 0, index + start, index)
        if len(regions):
            matched_idxs[(matched_idxs == BACKGROUND) & inside_regions(anchors, regions)] = IGNORED
        per_image.append(matched_idxs)
        start += len(boxes)
    return torch.stack(per_image)


def match_by_iou(matcher: Matcher, anchors: Tensor, objects: Objects) -> Tensor:
    """Assign anchors as a detector's own IoU matcher does, without sampling; see :func:`assign`.

    The matcher itself reads results off the device, for which the device would be waited for.
    """

    def match(boxes: Tensor) -> Tensor:
        if len(boxes) == 0:
            return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
        iou = pairwise_iou(boxes, anchors)
        best, index = iou.max(0)
        label = torch.full_like(index, matcher.labels[0])
        for threshold, above in zip(matcher.thresholds[1:], matcher.labels[1:]):
            label = torch.where(best >= threshold, above, label)
        if matcher.allow_low_quality_matches:
            nearest = (iou == iou.amax(1, keepdim=True)).any(0)
            label = torch.where(nearest, 1, label)
        return torch.where(label == 1, index, torch.where(label == 0, BACKGROUND, IGNORED))

    return assign(match, anchors, objects)


def is_known(generator: nn.Module, matcher: Matcher) -> bool:
    """Whether both are Detectron2's own, which the rules below describe completely."""
    return type(generator) is DefaultAnchorGenerator and type(matcher) is Matcher


def anchor_rule(generator: nn.Module) -> Hashable:
    """What an anchor generator makes anchors by: equal rules make equal anchors."""
    if type(generator) is not DefaultAnchorGenerator:
        return generator
    cells = tuple(tuple(x.flatten().tolist()) for x in generator.cell_anchors)
    return tuple(generator.strides), generator.offset, cells


def iou_rule(generator: nn.Module, matcher: Matcher) -> Hashable:
    """What an IoU matcher assigns a generator's anchors by."""
    if type(matcher) is not Matcher:
        return anchor_rule(generator), matcher
    thresholds, labels = tuple(matcher.thresholds), tuple(matcher.labels)
    return thresholds, labels, matcher.allow_low_quality_matches, anchor_rule(generator)


def gather_matched(values: Tensor, matched_idxs: Tensor, default: Tensor) -> Tensor:
    """Gather values (M, ...) by matched_idxs (N, R); `default` where the matched_idxs is no object."""
    positive = matched_idxs >= 0
    padded = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
    gathered = padded[torch.where(positive, matched_idxs, len(values))]
    return torch.where(
        positive.view(*matched_idxs.shape, *[1] * (values.dim() - 1)), gathered, default
    )
