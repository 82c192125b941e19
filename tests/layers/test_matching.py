"""Which anchors count, and how many are positive."""

import torch

from aid_d2.layers.matching import centered_in_image, count_positive, counted_anchors
from aid_d2.structures import BACKGROUND, IGNORED, Objects

# Centres at (8, 8), (40, 8), (8, 40) and (31.5, 15.5).
ANCHORS = torch.tensor([[0.0, 0, 16, 16], [32, 0, 48, 16], [0, 32, 16, 48], [0, 0, 63, 31]])
IMAGE_SIZES = [(64, 64), (16, 32)]


def objects(image_sizes):
    images = len(image_sizes)
    return Objects(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        [0] * images,
        [torch.zeros(0, 4)] * images,
        image_sizes,
    )


def test_padding_begins_where_the_image_ends():
    centres = torch.tensor([[0.0, 0.0], [31.9, 15.9], [32.0, 5.0], [5.0, 16.0], [63.0, 63.0]])
    anchors = torch.cat([centres - 16, centres + 16], dim=1)
    expected = [[True] * 5, [True, True, False, False, False]]
    assert centered_in_image(anchors, IMAGE_SIZES).tolist() == expected


def test_anchors_ignored_or_in_the_padding_do_not_count():
    matched_idxs = torch.tensor([[0, IGNORED, BACKGROUND, 0], [BACKGROUND, 1, BACKGROUND, IGNORED]])
    expected = [[True, False, True, True], [True, False, False, False]]
    assert counted_anchors(matched_idxs, ANCHORS, objects(IMAGE_SIZES)).tolist() == expected


def test_positive_anchors_are_counted_over_the_batch_and_are_at_least_one():
    matched_idxs = torch.tensor([[3, BACKGROUND, 0], [IGNORED, BACKGROUND, 5]])
    assert count_positive(matched_idxs) == 3
    assert count_positive(torch.full((2, 3), BACKGROUND)) == 1
