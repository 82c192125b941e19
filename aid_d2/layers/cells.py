"""Which object each cell of a pyramid shows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..structures import LevelShape, Objects

# Bits of an int64 that can be set without touching its sign.
_WORD = 63


def boxes_in_cells(boxes: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The cells of a level that boxes reach into.

    Args:
        boxes: (M, 4), pixels of the network's input.
        stride: of the level.

    Returns:
        first cell and the one after the last (M, 2), x and y; at least one cell each.
    """
    low, high = (boxes / stride).chunk(2, dim=1)
    low = low.floor()
    return low, torch.maximum(high.ceil(), low + 1)


def smallest_objects(
    objects: Objects, levels: Sequence[LevelShape], among: Tensor | None = None
) -> list[Tensor]:
    """The smallest object whose box reaches into each cell of each level.

    Sorted by area, objects become bits: a cell's objects are those of its row and its column, and
    the lowest bit is the smallest. The cost does not grow with the number of objects until an
    image holds more than 63. All levels share one pass: on a GPU many small operators would wait
    for the host.

    Args:
        objects: M of them.
        levels: with the cells.
        among: (M,) bool, the objects that count; by default all.

    Returns:
        per level (N, H, W) int64, index into objects.boxes; -1 outside all boxes.
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

    def bits(low: Tensor, high: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        """Per level (N x words, size): the objects that reach into each of its rows or columns."""
        edges = [
            torch.arange(0, (size + 1) * level.stride, level.stride, device=boxes.device)
            for size, level in zip(sizes, levels)
        ]
        first, last = (torch.cat([x[i : len(x) - 1 + i] for x in edges]) for i in (0, 1))
        # The cell of the low side counts in any case, also for a box without area.
        inside = (last > low) & ((first < high) | (first <= low))
        empty = torch.zeros(num_images * words, len(first), dtype=torch.int64, device=boxes.device)
        return empty.index_add(0, row, inside * bit[:, None]).split(sizes, dim=1)

    rows = bits(boxes[:, 1:2], boxes[:, 3:4], [x.height for x in levels])
    columns = bits(boxes[:, 0:1], boxes[:, 2:3], [x.width for x in levels])
    covering = [(x[:, :, None] & y[:, None, :]).flatten(1) for x, y in zip(rows, columns)]
    covering = torch.cat(covering, dim=1).unflatten(0, (num_images, words))
    lowest = covering & -covering
    # A power of two is exact in float64, and frexp reads its exponent.
    exponent = torch.frexp(lowest.double()).exponent.long() - 1
    word = torch.arange(words, device=boxes.device)[:, None]
    none = words * _WORD
    smallest = torch.where(lowest > 0, word * _WORD + exponent, none).amin(1)
    index = order.new_full((num_images, none + 1), -1)
    index[image, rank] = order
    parts = index.gather(1, smallest).split([x.height * x.width for x in levels], dim=1)
    return [x.unflatten(1, (y.height, y.width)) for x, y in zip(parts, levels)]
