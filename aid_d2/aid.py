"""Adaptive instance distillation (AID): how far the teacher is to be trusted, and where.

AID (Lan & Tian, ICPR 2022, arXiv 2201.11097, eq. 1) multiplies the distillation loss of an
instance by ``exp(-alpha * D)``, where D is the teacher's own task loss on that instance: where the
teacher is wrong, its knowledge counts less. What an instance is, the *granularity*, is a choice:

============  ====================================================================================
``level``     one weight per pyramid level for the batch, as in the authors' released code
``image``     one weight per image and level: the paper's i as one training image
``instance``  one weight per ground-truth object, painted into its box; the background apart
``location``  one weight per location of the pyramid
============  ====================================================================================

Each fills the same :class:`DistillWeights`, one map per level with values in (0, 1] (rescaled ones have the
mean 1 instead). Everything here is a pure function on tensors; a detector wrapper supplies the
:class:`UnreducedLosses`.

What is hard has a large loss, whoever looks at it, and may be what a student has most to learn of. A
variant of this project therefore takes for D only what the teacher's loss exceeds the student's own
by: the teacher counts fully wherever it is the better of the two.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .losses import LevelShape, Objects, UnreducedLosses
from .weights import DistillWeights

GRANULARITIES = ("level", "image", "instance", "location")
NORMALIZERS = ("native", "per_level")

# exp(-80) = 2e-35 is still a normal float32, so that no weight becomes 0.
_MAX_EXPONENT = 80.0

# Bits of an int64 that can be set without touching its sign.
_WORD = 63


def loss_to_weight(loss: Tensor, alpha: float) -> Tensor:
    """AID's weight ``exp(-alpha * D)`` (AID eq. 1), positive and finite whatever the loss.

    Args:
        loss: D, any shape, >= 0; NaN and infinity count as a very large loss.
        alpha: >= 0; 0.1 in the paper.

    Returns:
        the same shape, float32, detached, in (0, 1].
    """
    huge = torch.finfo(torch.float32).max
    loss = loss.detach().float().nan_to_num(nan=huge, posinf=huge).clamp(min=0)
    return torch.exp(-(alpha * loss).clamp(max=_MAX_EXPONENT))


def aid_weights(
    losses: UnreducedLosses,
    alpha: float,
    granularity: str,
    normalizer: str = "native",
    rescale: bool = False,
    student: UnreducedLosses | None = None,
) -> DistillWeights:
    """AID's weight maps for all levels of the teacher.

    Args:
        losses: the teacher's unreduced losses.
        alpha: strength of the modulation, >= 0; with 0 every weight is exactly 1.
        granularity: one of GRANULARITIES.
        normalizer: of `level` and `image`, one of NORMALIZERS; see :func:`level_loss`.
        rescale: divide the weights by their mean; see :func:`rescaled`.
        student: the student's losses on the same batch and levels. If they are given, D is
            ``max(D_teacher - D_student, 0)``.

    Raises:
        ValueError: unknown granularity or normalizer.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"Unknown normalizer {normalizer!r}: choose one of {NORMALIZERS}.")

    def weigh(loss: Callable[[UnreducedLosses], Tensor]) -> Tensor:
        excess = loss(losses)
        if student is not None:
            excess = excess - loss(student)
        return loss_to_weight(excess, alpha)

    if granularity == "level":
        weights = weigh(lambda x: level_loss(x, normalizer))
        maps = _constant_maps(weights[None].expand(len(losses.cls), -1), losses.levels)
    elif granularity == "image":
        maps = _constant_maps(weigh(lambda x: image_loss(x, normalizer)), losses.levels)
    elif granularity == "instance":
        maps = _painted_maps(losses, weigh(object_loss), weigh(lambda x: x.background))
    elif granularity == "location":
        shapes = [(x.height, x.width) for x in losses.levels]
        flat = weigh(lambda x: torch.cat([y.flatten(1) for y in location_loss(x)], dim=1))
        parts = flat.split([height * width for height, width in shapes], dim=1)
        maps = [x.unflatten(1, shape) for x, shape in zip(parts, shapes)]
    else:
        raise ValueError(f"Unknown granularity {granularity!r}: choose one of {GRANULARITIES}.")
    if rescale:
        maps = rescaled(maps, [x >= 0 for x in _smallest_known(losses)])
    return DistillWeights({level.stride: x[:, None] for level, x in zip(losses.levels, maps)})


def rescaled(maps: list[Tensor], inside: list[Tensor]) -> list[Tensor]:
    """Weights of mean 1 on objects, and apart from them on background.

    AID then moves distillation among objects, from where the teacher is wrong to where it is right,
    instead of taking some of it away, and none from objects to background.

    Args:
        maps: weights of each level (N, H, W).
        inside: whether a cell is in the box of an object with a loss, (N, H, W) bool.

    Returns:
        per level (N, H, W), positive; the means are over all cells of all levels.
    """
    weights, mask = (torch.cat([x.flatten() for x in y]) for y in (maps, inside))
    count = mask.sum()
    objects = (weights * mask).sum() / count.clamp(min=1)
    background = (weights * ~mask).sum() / (len(mask) - count).clamp(min=1)
    return [x / torch.where(y, objects, background) for x, y in zip(maps, inside)]


def level_loss(losses: UnreducedLosses, normalizer: str = "native") -> Tensor:
    """A detector's loss on each level, over the whole batch.

    With `native` normalisation the levels add up to the detector's own dense loss, so that a level
    without objects has a small loss and nearly full weight. With `per_level` each level is divided
    by its own number of positive anchors. The mean loss of a second stage is added to each level.

    Returns:
        (L,)
    """
    sums, positives = _level_sums(losses)
    divisor = losses.batch_normalizer if normalizer == "native" else positives.sum(0).clamp(min=1)
    total = sums.sum(0) / divisor
    if losses.roi is not None:
        total = total + losses.mean_roi
    return total


def image_loss(losses: UnreducedLosses, normalizer: str = "native") -> Tensor:
    """As :func:`level_loss`, for each image by itself.

    Returns:
        (N, L)
    """
    sums, positives = _level_sums(losses)
    native = losses.image_normalizer[:, None]
    total = sums / (native if normalizer == "native" else positives.clamp(min=1))
    if losses.roi is not None:
        roi = sums.new_zeros(len(sums)).index_add_(0, losses.objects.image_index, losses.roi)
        total = total + (roi / losses.objects.counts_on_device.clamp(min=1))[:, None]
    return total


def object_loss(losses: UnreducedLosses) -> Tensor:
    """A detector's loss on each object: cls + box, the mean over the object's positive anchors,
    plus the loss of a second stage.

    Returns:
        (M,); see `known_objects` for where it says something.
    """
    loss = losses.sum_by_object(losses.cls + losses.box) / losses.num_positives.clamp(min=1)
    return loss if losses.roi is None else loss + losses.roi


def location_loss(losses: UnreducedLosses) -> list[Tensor]:
    """A detector's loss at each location: cls + box, the mean over its positive anchors; without
    one, the sum of cls. A second stage adds its loss on the smallest object there.

    Returns:
        per level (N, H, W)
    """
    maps = []
    for level, cls, box, matched_idxs in zip(
        losses.levels, *map(losses.split, (losses.cls, losses.box, losses.matched_idxs))
    ):
        positive = matched_idxs >= 0
        count = positive.sum(-1)
        mean = ((cls + box) * positive).sum(-1) / count.clamp(min=1)
        loss = torch.where(count > 0, mean, cls.sum(-1))
        if losses.roi is not None:
            loss = loss + _gather_or(losses.roi, smallest_object(losses.objects, level), 0.0)
        maps.append(loss)
    return maps


def smallest_object(objects: Objects, level: LevelShape, among: Tensor | None = None) -> Tensor:
    """The smallest object whose box reaches into each cell of a level.

    Sorted by area, objects become bits: a cell's objects are those of its row and its column, and
    the lowest bit is the smallest. The cost does not grow with the number of objects until an
    image holds more than 63.

    Args:
        objects: M of them.
        level: with the cells.
        among: (M,) bool, the objects that count; by default all.

    Returns:
        (N, H, W) int64, index into objects.boxes; -1 outside all boxes.
    """
    num_images, num_objects = len(objects.counts), len(objects.boxes)
    words = max(-(-max(objects.counts) // _WORD), 1)
    order = objects.by_area
    boxes, image = objects.boxes[order], objects.image_index[order]
    start = objects.counts_on_device.cumsum(0) - objects.counts_on_device
    position = torch.arange(num_objects, device=boxes.device)
    rank = position - start[image]
    row = image * words + rank // _WORD
    counts = torch.ones_like(rank) if among is None else among[order].long()
    bit = counts << (rank % _WORD)

    def bits(low: Tensor, high: Tensor, size: int) -> Tensor:
        cells = torch.arange(size, device=boxes.device)
        first = (low / level.stride).floor()
        last = torch.maximum((high / level.stride).ceil(), first + 1)
        inside = (cells >= first[:, None]) & (cells < last[:, None])
        empty = torch.zeros(num_images * words, size, dtype=torch.int64, device=boxes.device)
        return empty.index_add(0, row, inside * bit[:, None])

    rows = bits(boxes[:, 1], boxes[:, 3], level.height)
    columns = bits(boxes[:, 0], boxes[:, 2], level.width)
    covering = (rows[:, :, None] & columns[:, None, :]).unflatten(0, (num_images, words))
    lowest = covering & -covering
    # A power of two is exact in float64, and frexp reads its exponent.
    exponent = torch.frexp(lowest.double()).exponent.long() - 1
    word = torch.arange(words, device=boxes.device)[:, None, None]
    none = words * _WORD
    smallest = torch.where(lowest > 0, word * _WORD + exponent, none).amin(1)
    index = order.new_full((num_images, none + 1), -1)
    index[image, rank] = order
    return index.gather(1, smallest.flatten(1)).view_as(smallest)


def _level_sums(losses: UnreducedLosses) -> tuple[Tensor, Tensor]:
    """(N, L) sum of the anchors' losses, and number of positive anchors."""
    values = losses.split(losses.anchor_losses)
    matched_idxs = losses.split(losses.matched_idxs)
    return (
        torch.stack([x.flatten(1).sum(1) for x in values], dim=1),
        torch.stack([(x >= 0).flatten(1).sum(1) for x in matched_idxs], dim=1),
    )


def _constant_maps(weights: Tensor, levels: list[LevelShape]) -> list[Tensor]:
    return [
        weights[:, i, None, None].expand(-1, level.height, level.width)
        for i, level in enumerate(levels)
    ]


def _painted_maps(
    losses: UnreducedLosses, of_objects: Tensor, of_background: Tensor
) -> list[Tensor]:
    """The weights (M,) of objects in their boxes, over those (N, L) of the background."""
    return [
        torch.where(x >= 0, _gather_or(of_objects, x, 0.0), of_background[:, i, None, None])
        for i, x in enumerate(_smallest_known(losses))
    ]


def _smallest_known(losses: UnreducedLosses) -> list[Tensor]:
    """Per level the smallest object of each cell, of those that there is a loss on."""
    known = losses.known_objects
    return [smallest_object(losses.objects, level, known) for level in losses.levels]


def _gather_or(values: Tensor, index: Tensor, default: float) -> Tensor:
    """values[index], or default where the index is -1."""
    return torch.cat([values, values.new_full((1,), default)])[index]
