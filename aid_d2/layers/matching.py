"""Which anchors are positive for which object, and which anchors count in a loss."""

from collections.abc import Callable

import torch
from torch import Tensor

from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_ioa

from ..structures import BACKGROUND, IGNORED, Objects
from .distributed import mean_over_gpus
from .iou import pairwise_iou


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


def match_boxes(matcher: Matcher, truth: Tensor, boxes: Tensor) -> Tensor:
    """Match the boxes (B, 4) of an image with its objects (m, 4) as a detector's IoU matcher does.

    The matcher itself reads results off the device, for which the device would be waited for.

    Returns:
        (B,) int64: the object, BACKGROUND or IGNORED.
    """
    if len(truth) == 0:
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    iou = pairwise_iou(truth, boxes)
    best, index = iou.max(0)
    label = torch.full_like(index, matcher.labels[0])
    for threshold, above in zip(matcher.thresholds[1:], matcher.labels[1:]):
        label = torch.where(best >= threshold, above, label)
    if matcher.allow_low_quality_matches:
        nearest = (iou == iou.amax(1, keepdim=True)).any(0)
        label = torch.where(nearest, 1, label)
    return torch.where(label == 1, index, torch.where(label == 0, BACKGROUND, IGNORED))


def match_by_iou(matcher: Matcher, anchors: Tensor, objects: Objects) -> Tensor:
    """Assign anchors by :func:`match_boxes`, without sampling; see :func:`assign`."""
    return assign(lambda boxes: match_boxes(matcher, boxes, anchors), anchors, objects)


def label_proposals(
    boxes: list[Boxes], objects: Objects, matcher: Matcher, background: int
) -> list[Instances]:
    """Proposals as a detector labels them for its box head.

    Args:
        boxes: of each of the N images.
        objects: the ground truth.
        matcher: of the box head. It looks at each proposal by itself, so that the label is that
            with which the proposal was sampled.
        background: the class of proposals that match no object.

    Returns:
        per image, with the fields proposal_boxes, gt_classes and gt_boxes, which is 0 for
        background.
    """
    of_images = zip(
        boxes,
        objects.boxes.split(objects.counts),
        objects.classes.split(objects.counts),
        objects.image_sizes,
        strict=True,
    )
    result = []
    for proposals, truth, classes, size in of_images:
        index = match_boxes(matcher, truth, proposals.tensor)
        # BACKGROUND, -1, is the last one.
        truth = torch.cat([truth, truth.new_zeros(1, 4)])
        classes = torch.cat([classes, classes.new_full((1,), background)])
        result.append(
            Instances(
                size,
                proposal_boxes=proposals,
                gt_boxes=Boxes(truth[index]),
                gt_classes=classes[index],
            )
        )
    return result


def inside_regions(boxes: Tensor, regions: Tensor) -> Tensor:
    """Which boxes have more than half of their area in one region.

    Args:
        boxes: (B, 4) x1 y1 x2 y2.
        regions: (I, 4).

    Returns:
        (B,) bool
    """
    return (pairwise_ioa(Boxes(regions), Boxes(boxes)) > 0.5).any(0)


def gather_matched(values: Tensor, matched_idxs: Tensor, default: Tensor) -> Tensor:
    """Gather values (M, ...) by matched_idxs (N, R); `default` where there is no object."""
    positive = matched_idxs >= 0
    padded = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
    gathered = padded[torch.where(positive, matched_idxs, len(values))]
    shape = (*matched_idxs.shape, *[1] * (values.dim() - 1))
    return torch.where(positive.view(shape), gathered, default)


def counted_anchors(matched_idxs: Tensor, anchors: Tensor, objects: Objects) -> Tensor:
    """(N, R) bool: neither ignored by the detector's own assignment nor centered in the padding.

    Args:
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
        anchors: (R, 4) x1 y1 x2 y2, pixels.
        objects: ground truth of the N images.
    """
    return (matched_idxs != IGNORED) & centered_in_image(anchors, objects.image_sizes)


def inside_images(anchors: Tensor, image_sizes: list[tuple[int, int]], threshold: float) -> Tensor:
    """Which anchors leave an image by less than `threshold` pixels, as `Boxes.inside_box` says it.

    Args:
        anchors: (R, 4) x1 y1 x2 y2, pixels.
        image_sizes: (height, width) of each of N images.

    Returns:
        (N, R) bool
    """
    size = torch.tensor(image_sizes).to(anchors.device, non_blocking=True).flip(1)[:, None]
    low, high = anchors[:, :2], anchors[:, 2:]
    return (low >= -threshold).all(-1) & (high < size + threshold).all(-1)


def centered_in_image(anchors: Tensor, image_sizes: list[tuple[int, int]]) -> Tensor:
    """Which anchors have their center in the image and not in its padding.

    Args:
        anchors: (R, 4) x1 y1 x2 y2, pixels.
        image_sizes: (height, width) of each of N images.

    Returns:
        (N, R) bool
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    width_height = torch.tensor(image_sizes).to(anchors.device, non_blocking=True).flip(1)
    return (centers < width_height[:, None]).all(-1)


def count_positive(matched_idxs: Tensor) -> Tensor:
    """N_pos (): positive anchors of a GPU's images, the mean over GPUs, at least 1.

    Args:
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
    """
    return mean_over_gpus((matched_idxs >= 0).sum().float()).clamp(min=1)
