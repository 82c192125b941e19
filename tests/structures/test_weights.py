"""How methods read AID's weights: per anchor, per box, and in chosen images."""

import numpy as np
import pytest
import torch

from aid_d2.structures import DistillWeights, LevelShape, pool_boxes

SIZES = {8: (8, 12), 16: (4, 6), 32: (2, 3)}


def random_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return DistillWeights(
        {s: torch.rand(2, 1, *size, generator=generator) for s, size in SIZES.items()}
    )


def test_an_anchor_has_the_weight_of_its_location():
    weights, anchors = random_weights(), {8: 3, 16: 1, 32: 2}
    levels = [LevelShape(s, *size, anchors[s]) for s, size in SIZES.items()]
    values = weights.per_anchor(levels)
    for image in range(2):
        expected = [
            weights.maps[level.stride][image, 0, y, x].item()
            for level in levels
            for y in range(level.height)
            for x in range(level.width)
            for _ in range(level.anchors)
        ]
        assert values[image].tolist() == expected


def test_a_box_has_the_mean_weight_of_the_cells_it_covers():
    """Boxes on whole cells; small ones are read off the finest level, as ROIAlign is told to."""
    weights = random_weights()
    # Columns and rows of cells at stride 8, and the images they are in.
    cells = [(0, 0, 2, 2), (3, 1, 7, 5), (10, 6, 12, 8)]
    boxes = [torch.tensor([[8.0 * v for v in cells[0]]]), torch.tensor(cells[1:]) * 8.0]
    values = weights.per_box(boxes)
    for weight, image, (x0, y0, x1, y1) in zip(values.tolist(), (0, 1, 1), cells):
        covered = weights.maps[8][image, 0, y0:y1, x0:x1].numpy()
        # Samples lie between the cells' centres: their mean is near that of the cells.
        assert weight == pytest.approx(np.mean(covered), abs=0.1)


@pytest.mark.parametrize("weight", [1.0, 0.123456789, 1e-35])
def test_boxes_on_a_constant_map_have_exactly_its_weight(weight):
    weights = DistillWeights({s: torch.full((2, 1, *size), weight) for s, size in SIZES.items()})
    boxes = [torch.tensor([[3.0, 5, 61, 47], [0, 0, 96, 64]]), torch.zeros(0, 4)]
    expected = torch.full((2,), weight)
    assert torch.equal(weights.per_box(boxes), expected)
    assert len(weights.per_box([torch.zeros(0, 4)] * 2)) == 0


def test_boxes_are_pooled_at_the_level_of_their_size():
    maps = {s: torch.full((1, 1, 512 // s, 512 // s), float(s)) for s in SIZES}
    # FPN puts a box of 224 pixels on stride 16, one of half the side on stride 8.
    boxes = torch.tensor([[0.0, 0, 60, 60], [0, 0, 230, 230], [0, 0, 500, 500]])
    assert pool_boxes(maps, [boxes], 1, 2).flatten().tolist() == [8.0, 16.0, 32.0]


def test_full_weight_in_some_images():
    weights = random_weights()
    changed = weights.with_full([1])
    for stride, values in changed.maps.items():
        assert (values[1] == 1).all()
        assert torch.equal(values[0], weights.maps[stride][0])
        assert (weights.maps[stride][1] < 1).all()
