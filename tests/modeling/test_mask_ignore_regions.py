"""Leaving ignore regions out of a student's loss."""

import pytest
import torch
from torch import nn

from aid_d2.layers.matching import inside_regions
from aid_d2.modeling.ignore_regions import ignoring_regions
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

REGION = [0.0, 0, 72, 96]
OBJECTS = [[80.0, 16, 120, 60], [8.0, 8, 40, 40]]  # the second lies in the region
SIZE = (96, 128)


def make_batch(region=True):
    boxes, classes = list(OBJECTS), [1, 2]
    if region:
        boxes, classes = [REGION] + boxes, [-1] + classes
    instances = Instances(SIZE, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=generator)
    return [{"image": image, "instances": instances}]


def fraction_inside(boxes, region):
    x1, y1, x2, y2 = boxes.double().unbind(-1)
    width = (x2.clamp(max=region[2]) - x1.clamp(min=region[0])).clamp(min=0)
    height = (y2.clamp(max=region[3]) - y1.clamp(min=region[1])).clamp(min=0)
    return width * height / ((x2 - x1) * (y2 - y1))


@pytest.fixture
def masked(small_cfg, build_seeded):
    def build(detector, changes=None):
        return build_seeded(ignoring_regions(small_cfg(detector, changes)), 0)

    return build


def anchors_of(generator, model):
    with torch.no_grad():
        images = model.preprocess_image(make_batch())
        maps = model.backbone(images.tensor)
    names = getattr(model, "head_in_features", None) or model.proposal_generator.in_features
    return generator([maps[name] for name in names])


def test_a_box_is_inside_by_more_than_half_of_its_area():
    regions = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    boxes = torch.tensor(
        [[0.0, 0, 4, 4], [5, 0, 14, 10], [5, 0, 15, 10], [8, 0, 22, 10], [0, 0, 30, 10]]
    )
    assert inside_regions(boxes, regions).tolist() == [True, True, False, False, False]
    assert not inside_regions(boxes, regions[:0]).any()


def test_retinanet_ignores_background_anchors_inside(masked, build_seeded, small_cfg):
    model = masked("RetinaNet")
    anchors = anchors_of(model.anchor_generator, model)
    plain = build_seeded(small_cfg("RetinaNet"), 0)
    expected, _ = plain.label_anchors(anchors, [make_batch(region=False)[0]["instances"]])
    labels, boxes = model.label_anchors(anchors, [make_batch()[0]["instances"]])
    inside = fraction_inside(Boxes.cat(anchors).tensor, REGION) > 0.5
    silenced = inside & (expected[0] == model.num_classes)
    assert silenced.any() and (~inside & (expected[0] == model.num_classes)).any()
    assert (labels[0][silenced] == -1).all()
    assert torch.equal(labels[0][~silenced], expected[0][~silenced])
    # Both objects, the one in the region too, keep their anchors.
    assert {1, 2} <= set(labels[0].tolist())
    positive = (labels[0] >= 0) & (labels[0] < model.num_classes)
    assert {tuple(x) for x in boxes[0][positive].tolist()} == {tuple(x) for x in OBJECTS}


def test_rpn_draws_no_negative_inside(masked):
    model = masked("FasterRCNN", {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 2000})
    rpn = model.proposal_generator
    anchors = anchors_of(rpn.anchor_generator, model)
    labels, boxes = rpn.label_and_sample_anchors(anchors, [make_batch()[0]["instances"]])
    inside = fraction_inside(Boxes.cat(anchors).tensor, REGION) > 0.5
    assert inside.any() and not (labels[0][inside] == 0).any()
    assert (labels[0][~inside] == 0).any()
    assert {tuple(x) for x in boxes[0][labels[0] == 1].tolist()} == {tuple(x) for x in OBJECTS}


class Disturbed(nn.Module):
    """A dense head whose class logits are raised at some anchors (R,)."""

    def __init__(self, head, values):
        super().__init__()
        self.head, self.values = head, values
        self.where = None

    def forward(self, features):
        logits, deltas = self.head(features)
        if self.where is not None:
            start, raised = 0, []
            for x in logits:
                anchors = x.shape[1] // self.values
                height, width = x.shape[-2:]
                count = anchors * height * width
                where = self.where[start : start + count].view(height, width, anchors)
                where = where.permute(2, 0, 1).repeat_interleave(self.values, dim=0)
                raised.append(x + 5.0 * where)
                start += count
            logits = raised
        return logits, deltas


def dense_losses(model, names, batch):
    torch.manual_seed(0)
    if hasattr(model, "loss_normalizer"):
        model.loss_normalizer = 100
    with EventStorage():
        losses = model.train()(batch)
    return {name: losses[name].item() for name in names}


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_predictions_inside_have_no_part_in_the_loss(masked, detector):
    # All anchors are drawn, so that no random choice is involved.
    changes = {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 5000} if detector == "FasterRCNN" else {}
    model = masked(detector, changes)
    if detector == "RetinaNet":
        names = ["loss_cls", "loss_box_reg"]
        head = model.head = Disturbed(model.head, model.num_classes)
        generator, labelled = model.anchor_generator, model.label_anchors
    else:
        names = ["loss_rpn_cls", "loss_rpn_loc"]
        rpn = model.proposal_generator
        head = rpn.rpn_head = Disturbed(rpn.rpn_head, 1)
        generator, labelled = rpn.anchor_generator, rpn.label_and_sample_anchors
    anchors = anchors_of(generator, model)
    labels, _ = labelled(anchors, [make_batch()[0]["instances"]])
    ignored = labels[0] == -1
    inside = (fraction_inside(Boxes.cat(anchors).tensor, REGION) > 0.5) & ignored
    outside = ~ignored

    before = dense_losses(model, names, make_batch())
    head.where = inside
    assert inside.sum() > 50
    assert dense_losses(model, names, make_batch()) == before
    head.where = outside
    assert dense_losses(model, names, make_batch())[names[0]] > before[names[0]] * 1.01


def proposals_at(boxes):
    return Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))


def test_proposals_inside_are_no_negatives(masked):
    heads = masked("FasterRCNN").roi_heads.train()
    boxes = [[50.0, 50, 70, 90], [90.0, 62, 120, 94], [9.0, 9, 41, 41], [81.0, 17, 120, 61]]
    with EventStorage():
        sampled = heads.label_and_sample_proposals(
            [proposals_at(boxes)], [make_batch()[0]["instances"]]
        )[0]
    result = dict(
        zip(map(tuple, sampled.proposal_boxes.tensor.tolist()), sampled.gt_classes.tolist())
    )
    background = heads.num_classes
    # The first lies in the region and is gone; the third finds the object there.
    expected = {tuple(boxes[1]): background, tuple(boxes[2]): 2, tuple(boxes[3]): 1}
    expected.update({tuple(OBJECTS[0]): 1, tuple(OBJECTS[1]): 2})
    assert result == expected


def test_later_stages_of_a_cascade(masked):
    """They label their boxes by themselves, with what the first stage was given."""
    cascade = {
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    }
    model = masked("FasterRCNN", cascade).train()
    heads = model.roi_heads
    boxes = [[50.0, 50, 70, 90], [90.0, 62, 120, 94], [9.0, 9, 41, 41], [81.0, 17, 120, 61]]
    # An IoU of 0.5625 is no positive at 0.6, this stage's threshold, and would be background.
    boxes.insert(0, [8.0, 8, 40, 26])
    with EventStorage():
        (kept,) = heads._match_and_label_boxes(
            [proposals_at(boxes)], 1, [make_batch()[0]["instances"]]
        )
        losses = model(make_batch())
    assert kept.proposal_boxes.tensor.tolist() == boxes[2:]
    assert kept.gt_classes.tolist() == [heads.num_classes, 2, 1]
    assert "loss_cls_stage2" in losses and all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_without_regions_nothing_changes(masked, small_cfg, build_seeded, detector):
    batch = make_batch(region=False)
    losses = []
    for model in (build_seeded(small_cfg(detector), 0), masked(detector)):
        torch.manual_seed(0)
        with EventStorage():
            losses.append({k: v.item() for k, v in model.train()(batch).items()})
    assert losses[0] == losses[1]


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_an_image_that_is_one_ignore_region(masked, detector):
    batch = make_batch()
    batch[0]["instances"] = Instances(
        SIZE, gt_boxes=Boxes([[-300.0, -300, 400, 400]]), gt_classes=torch.tensor([-1])
    )
    with EventStorage():
        losses = masked(detector).train()(batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_cls"] == 0


def test_a_distilled_student_is_masked(distilled_cfg, build_seeded):
    model = build_seeded(ignoring_regions(distilled_cfg("RetinaNet")), 0)
    anchors = anchors_of(model.student.anchor_generator, model.student)
    labels, _ = model.student.label_anchors(anchors, [make_batch()[0]["instances"]])
    inside = fraction_inside(Boxes.cat(anchors).tensor, REGION) > 0.5
    assert not (labels[0][inside] == model.student.num_classes).any()


@pytest.mark.parametrize(
    "detector,changes,named",
    [
        ("FCOS", {}, "FCOS"),
        ("FasterRCNN", {"MODEL.ROI_HEADS.NAME": "Res5ROIHeads"}, "ROI_HEADS.NAME Res5ROIHeads"),
    ],
    ids=str,
)
def test_an_unknown_detector_is_named(small_cfg, detector, changes, named):
    with pytest.raises(ValueError, match=f"INPUT.MASK_IGNORE_REGIONS.*{named}.*False"):
        ignoring_regions(small_cfg(detector, changes))
