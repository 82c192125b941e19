"""DeFeat against its formula in NumPy, one cell at a time, float64."""

import numpy as np
import pytest
import torch
from helpers.toy import (
    BOXES,
    as_batch,
    build,
    context,
    maps,
    no_objects,
    random_weights,
    shake,
    some_objects,
)

from aid_d2.distillers.defeat import DeFeat, object_levels

SIZES = {8: (5, 6), 16: (3, 3), 32: (1, 2)}
WEIGHTS = {"foreground": 0.3, "background": 1.2}
IMAGES = [0, 0, 1]


def make(channels=(4, 4)):
    torch.manual_seed(0)
    return build(DeFeat, context(SIZES, channels, "RetinaNet"))


def in_a_box(n, y, x, stride):
    """Whether an object of the image reaches into the cell: on the finest level, of their size."""
    return stride == 8 and any(
        image == n
        and x1 < (x + 1) * stride
        and x2 > x * stride
        and y1 < (y + 1) * stride
        and y2 > y * stride
        for image, (x1, y1, x2, y2) in zip(IMAGES, BOXES)
    )


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
def test_losses_cell_by_cell(channels):
    student, teacher = maps(SIZES, channels[0], seed=1), maps(SIZES, channels[1], seed=2)
    weights, method = random_weights(teacher), shake(make(channels))
    expected = dict.fromkeys(WEIGHTS, 0.0)
    for stride, (height, width) in SIZES.items():
        adapted = method.adapters[stride](student[stride]).detach().numpy()
        for n in range(2):
            found = {part: [] for part in WEIGHTS}
            for y, x in np.ndindex(height, width):
                part = "foreground" if in_a_box(n, y, x, stride) else "background"
                squares = (teacher[stride][n, :, y, x].numpy() - adapted[n, :, y, x]) ** 2
                found[part].append(weights.maps[stride][n, 0, y, x].item() * squares.mean())
            for part, values in found.items():
                expected[part] += np.mean(values) / 2 if values else 0.0
    losses = method(as_batch(student, teacher, weights, some_objects()))
    for part, weight in WEIGHTS.items():
        assert losses[part].item() == pytest.approx(weight * expected[part], rel=1e-9), part


def test_levels_of_objects():
    """Of squares, by their sides in pixels."""
    sides = torch.tensor([0.0, 40, 110, 112, 222, 225, 500, 5000])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    assert object_levels(boxes, 5).tolist() == [0, 0, 0, 1, 1, 2, 3, 4]
    assert object_levels(boxes[:0], 5).tolist() == []


def test_images_without_objects_are_background():
    student, teacher = maps(SIZES, 4, seed=1), maps(SIZES, 4, seed=2)
    losses = make()(as_batch(student, teacher, random_weights(teacher), no_objects()))
    assert losses["foreground"] == 0 and losses["background"] > 0


def test_a_student_equal_to_its_teacher_has_no_loss():
    teacher = maps(SIZES, 4, seed=2)
    losses = make()(as_batch(teacher, teacher, random_weights(teacher), some_objects()))
    assert all(x.item() == 0 for x in losses.values())
