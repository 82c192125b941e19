"""ATSS against plain loops in float64."""

import numpy as np
import pytest
import torch

import aid_d2  # noqa: F401
from aid_d2.modeling.gfl.atss import atss_match


def make_anchors(height, width, strides=(8, 16, 32, 64, 128)):
    """GFL's anchors: one square of 8 strides at each location, level after level."""
    anchors, sizes = [], []
    for stride in strides:
        rows, columns = -(-height // stride), -(-width // stride)
        sizes.append(rows * columns)
        for i in range(rows):
            for j in range(columns):
                x, y = j * stride, i * stride
                anchors.append([x - 4 * stride, y - 4 * stride, x + 4 * stride, y + 4 * stride])
    return torch.tensor(anchors, dtype=torch.float32), sizes


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def reference(anchors, sizes, boxes, candidates=9):
    """The algorithm of the paper, one object and one anchor at a time."""
    anchors, boxes = anchors.double().tolist(), boxes.double().tolist()
    matched_idxs, best = [-1] * len(anchors), [-1.0] * len(anchors)
    for g, box in enumerate(boxes):
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        chosen, start = [], 0
        for size in sizes:
            distances = []
            for r in range(start, start + size):
                x, y = (anchors[r][0] + anchors[r][2]) / 2, (anchors[r][1] + anchors[r][3]) / 2
                distances.append((np.hypot(x - centre[0], y - centre[1]), r))
            chosen += [r for _, r in sorted(distances)[:candidates]]
            start += size
        ious = [iou(anchors[r], box) for r in chosen]
        mean = sum(ious) / len(ious)
        threshold = mean
        if len(ious) > 1:
            threshold += np.sqrt(sum((v - mean) ** 2 for v in ious) / (len(ious) - 1))
        for r, value in zip(chosen, ious):
            x, y = (anchors[r][0] + anchors[r][2]) / 2, (anchors[r][1] + anchors[r][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= threshold and inside and value > best[r]:
                matched_idxs[r], best[r] = g, value
    return matched_idxs


def random_boxes(generator, count, height, width):
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.8
    size = 3 + torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.7
    return torch.cat([corner, corner + size], dim=1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("candidates", [1, 9])
def test_equals_plain_loops_on_random_objects(seed, candidates):
    generator = torch.Generator().manual_seed(seed)
    height, width = ((96, 160), (64, 64), (200, 72))[seed % 3]
    anchors, sizes = make_anchors(height, width)
    boxes = random_boxes(generator, 1 + 3 * seed, height, width)
    matched_idxs = atss_match(anchors, sizes, boxes, candidates)
    assert matched_idxs.tolist() == reference(anchors, sizes, boxes, candidates)
    assert (matched_idxs >= 0).any()


@pytest.mark.parametrize(
    "box",
    [
        [33.1, 30.3, 37.3, 35.2],  # smaller than a stride, no centre inside
        [30.1, 29.2, 36.4, 35.3],  # smaller than a stride, around the centre (32, 32)
        [-60.3, -40.1, 180.2, 150.7],  # larger than the image
        [40.3, 11.2, 95.6, 90.3],
    ],
)
def test_degenerate_objects(box):
    anchors, sizes = make_anchors(96, 96)
    boxes = torch.tensor([box])
    assert atss_match(anchors, sizes, boxes).tolist() == reference(anchors, sizes, boxes)


def test_object_without_a_centre_inside_has_no_anchor():
    anchors, sizes = make_anchors(96, 96)
    assert (atss_match(anchors, sizes, torch.tensor([[33.1, 30.3, 37.3, 35.2]])) == -1).all()


def test_centre_on_the_border_is_outside():
    anchors, sizes = make_anchors(32, 32, strides=(8,))
    on_border = atss_match(anchors, sizes, torch.tensor([[8.0, 8.0, 15.9, 15.9]]), 1)
    within = atss_match(anchors, sizes, torch.tensor([[7.98, 7.98, 15.9, 15.9]]), 1)
    assert (on_border == -1).all() and (within == 0).sum() == 1


def test_one_candidate_is_its_own_threshold():
    anchors, sizes = make_anchors(8, 8, strides=(8,))
    assert atss_match(anchors, sizes, torch.tensor([[-3.0, -3.0, 5.0, 5.0]])).tolist() == [0]


def test_image_without_objects_is_background():
    anchors, sizes = make_anchors(64, 64)
    matched_idxs = atss_match(anchors, sizes, torch.zeros(0, 4))
    assert matched_idxs.shape == (len(anchors),) and (matched_idxs == -1).all()


def test_of_identical_objects_the_first_takes_all():
    anchors, sizes = make_anchors(96, 96)
    box = torch.tensor([[10.2, 15.1, 71.3, 66.4]])
    one, two = (atss_match(anchors, sizes, box.repeat(n, 1)) for n in (1, 2))
    assert torch.equal(one, two) and (one == 0).any()


def test_contested_anchor_goes_to_the_higher_iou():
    anchors, sizes = make_anchors(96, 96)
    boxes = torch.tensor([[10.2, 10.1, 90.3, 88.4], [20.3, 22.2, 70.1, 68.3]])
    alone = [atss_match(anchors, sizes, boxes[i : i + 1]) == 0 for i in range(2)]
    contested = (alone[0] & alone[1]).nonzero().flatten().tolist()
    assert contested
    matched_idxs = atss_match(anchors, sizes, boxes)
    for r in contested:
        ious = [iou(anchors[r].tolist(), box) for box in boxes.tolist()]
        assert matched_idxs[r] == int(np.argmax(ious))
