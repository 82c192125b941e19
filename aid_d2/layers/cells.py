"""Which object each cell of a level shows."""

import torch
from torch import Tensor

from ..structures import LevelShape, Objects

# Bits of an int64 that can be set without touching its sign.
_WORD = 63


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
