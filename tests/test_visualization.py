"""Pictures of boxes and weights."""

import cv2
import numpy as np
import pytest
import torch

from aid_d2.visualization import draw_boxes, draw_weight_map, place_labels

SIZE = (60, 20)


def overlaps(a, b):
    width, height = SIZE
    return abs(a[0] - b[0]) < width and abs(a[1] - b[1]) < height


@pytest.mark.parametrize(
    "boxes",
    [
        [(50, 60, 90, 100)] * 4,
        [(x, 60, x + 30, 100) for x in range(0, 150, 20)],
        [(0, 0, 20, 20), (5, 5, 30, 30), (180, 100, 200, 120), (170, 100, 199, 119)],
    ],
    ids=["one place", "a row", "corners"],
)
def test_labels_avoid_each_other(boxes):
    places = place_labels(boxes, [SIZE] * len(boxes), (120, 200))
    for i, place in enumerate(places):
        assert 0 <= place[0] <= 200 - SIZE[0] and 0 <= place[1] <= 120 - SIZE[1]
        assert not any(overlaps(place, other) for other in places[:i])


def test_a_lonely_label_is_above_its_box():
    assert place_labels([(50, 60, 90, 100)], [SIZE], (120, 200)) == [(50, 40)]


def test_without_room_labels_stay_at_their_boxes():
    places = place_labels([(1, 21, 30, 40)] * 9, [SIZE] * 9, (40, 61))
    assert places[-1] == places[0]


def test_boxes_have_the_color_of_their_value():
    boxes = torch.tensor([[10.0, 40, 40, 55], [60, 40, 90, 55], [110, 40, 140, 55]])
    picture = draw_boxes(
        np.zeros((80, 160, 3), np.uint8), "", boxes, ["a", "b", "c"], [0.0, 1.0, float("nan")], 1
    )
    head = len(picture) - 80
    red, green, gray = (picture[head + 48, x].astype(int) for x in (10, 60, 110))
    assert red[0] > red[1] + 50 and green[1] > green[0] + 50 and np.ptp(gray) == 0


def test_weights_lie_over_their_cells():
    """Each level's cell (y, x) covers stride x stride pixels from (y, x) times the stride."""
    weights = torch.ones(4, 6)
    weights[1, 2] = 0
    picture = draw_weight_map(np.zeros((30, 44, 3), np.uint8), "", weights, 8, scale=2)
    picture = picture[-60:].astype(int)
    reddish = picture[..., 0] > picture[..., 1]
    expected = np.zeros((60, 88), bool)
    expected[16:32, 32:48] = True
    assert (reddish == expected).all()
    assert cv2.countNonZero((picture.sum(-1) > 0).astype(np.uint8)) == 60 * 88
