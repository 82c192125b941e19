"""Graphs of static shapes: what they detect is what Detectron2's own inference detects."""

import pytest
import torch
from torch import nn

from aid_d2.deploy.graph import build_graph, clip, suppress
from aid_d2.modeling.precision import fold_norms
from detectron2.layers import batched_nms

NODES = ("RETINANET", "FCOS", "GFL", "ROI_HEADS")
ALL_SCORES = {f"MODEL.{node}.SCORE_THRESH_TEST": 0.0 for node in NODES}


@pytest.fixture
def detector(small_cfg, build_seeded):
    def build(name, **changes):
        cfg = small_cfg(name, {**ALL_SCORES, **changes})
        return build_seeded(cfg, 0).eval()

    return build


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "GFL", "FasterRCNN"])
@pytest.mark.parametrize("size", [(96, 128), (90, 101)])
def test_detections_are_those_of_detectron2(detector, name, size):
    model = detector(name)
    height, width = size
    image = torch.randint(0, 255, (height, width, 3), dtype=torch.uint8)
    with torch.no_grad():
        pixels = {"image": image.permute(2, 0, 1), "height": height, "width": width}
        (expected,) = model([pixels])
        padded = nn.functional.pad(image, (0, 0, 0, 128 - width, 0, 96 - height))
        boxes, scores, classes = build_graph(model, (96, 128))(padded, torch.tensor(size))
    expected = expected["instances"]
    found = scores > 0
    assert len(expected) == found.sum() > 20
    assert torch.allclose(boxes[found], expected.pred_boxes.tensor, atol=1e-3)
    assert torch.allclose(scores[found], expected.scores, atol=1e-6)
    assert torch.equal(classes[found], expected.pred_classes)


def test_small_proposals_are_left_out_as_in_detectron2(detector):
    model = detector("FasterRCNN", **{"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 30})
    image = torch.randint(0, 255, (96, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        (expected,) = model([{"image": image.permute(2, 0, 1), "height": 96, "width": 128}])
        boxes, scores, _ = build_graph(model, (96, 128))(image, torch.tensor((96, 128)))
    found = scores > 0
    assert len(expected["instances"]) == found.sum() > 20
    assert torch.allclose(boxes[found], expected["instances"].pred_boxes.tensor, atol=1e-3)


def test_fewer_candidates_are_the_best_ones(detector):
    """Of 10 candidates before the NMS come at most 10 detections, the best of all among them."""
    model = detector("GFL")
    image = torch.randint(0, 255, (96, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        all_scores = build_graph(model, (96, 96))(image, torch.tensor([96, 96]))[1]
        few_scores = build_graph(model, (96, 96), topk=10)(image, torch.tensor([96, 96]))[1]
    assert 1 <= (few_scores > 0).sum() <= 10
    assert few_scores[0] == all_scores[0]


@pytest.mark.parametrize("name", ["FCOS", "FasterRCNN"])
def test_candidates_without_nms(detector, name):
    """torchvision's NMS makes the detections of them."""
    model = detector(name)
    image, valid = torch.randint(0, 255, (96, 96, 3), dtype=torch.uint8), torch.tensor([96, 96])
    with torch.no_grad():
        graph = build_graph(model, (96, 96), topk=2000, suppressed=False)
        boxes, scores, classes = graph(image, valid)
        expected = build_graph(model, (96, 96), topk=2000)(image, valid)
    threshold, count = graph.nms
    some = scores > 0
    boxes, scores, classes = boxes[some], scores[some], classes[some]
    keep = batched_nms(boxes, scores, classes, threshold)[:count]
    found = expected[1] > 0
    assert found.sum() > 20
    boxes = clip(boxes[keep], valid)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)  # those beside the image are none
    assert torch.allclose(boxes[inside], expected[0][found])
    assert torch.equal(scores[keep][inside], expected[1][found])


def test_folded_norms_change_rounding_alone(detector):
    model = detector("FasterRCNN", **{"MODEL.RESNETS.NORM": "BN", "MODEL.FPN.NORM": "BN"})
    image = torch.randint(0, 255, (96, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        before = build_graph(model, (96, 96))(image, torch.tensor([96, 96]))[1]
        fold_norms(model)
        after = build_graph(model, (96, 96))(image, torch.tensor([96, 96]))[1]
    assert torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("count", [3, 40, 200])
def test_suppression(count):
    """Beside torchvision's, whether it finds fewer or more than are wanted."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(100, 2, generator=generator) * 80
    boxes = torch.cat([low, low + 5 + torch.rand(100, 2, generator=generator) * 30], 1)
    scores = torch.rand(100, generator=generator)
    scores[:20] = 0
    groups = torch.randint(0, 3, (100,), generator=generator)
    some = scores > 0
    keep = some.nonzero()[:, 0][batched_nms(boxes[some], scores[some], groups[some], 0.4)][:count]
    found_boxes, found_scores, found_groups = suppress(boxes, scores, groups, 0.4, count)
    assert len(found_boxes) == len(found_scores) == len(found_groups) == count
    assert torch.equal(found_boxes[: len(keep)], boxes[keep])
    assert torch.equal(found_scores[: len(keep)], scores[keep])
    assert torch.equal(found_groups[: len(keep)], groups[keep])
    assert not found_scores[len(keep) :].any() and not found_boxes[len(keep) :].any()


def test_other_detectors_are_refused_by_name(detector):
    cascade = {
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    }
    with pytest.raises(NotImplementedError, match="CascadeROIHeads cannot be exported"):
        build_graph(detector("FasterRCNN", **cascade), (96, 96))


def test_masks_are_left_out_with_a_warning(detector, caplog):
    """The box head is that of a Faster R-CNN."""
    model = detector("FasterRCNN", **{"MODEL.MASK_ON": True})
    image, valid = torch.zeros(96, 96, 3, dtype=torch.uint8), torch.tensor([96, 96])
    with torch.no_grad():
        boxes, _, _ = build_graph(model, (96, 96))(image, valid)
    assert boxes.shape[1] == 4 and "masks and keypoints are left out" in caplog.text


@pytest.mark.parametrize("suppressed", [True, False])
@pytest.mark.parametrize("name", ["RetinaNet", "FasterRCNN"])
def test_scores_fall_and_zeros_come_last(detector, name, suppressed):
    """Also where boxes outside of a small image are none."""
    image = torch.randint(0, 255, (96, 128, 3), dtype=torch.uint8)
    graph = build_graph(detector(name), (96, 128), suppressed=suppressed)
    with torch.no_grad():
        _, scores, _ = graph(image, torch.tensor((20, 20)))
    assert 0 < (scores > 0).sum()
    assert (scores.diff() <= 0).all()
