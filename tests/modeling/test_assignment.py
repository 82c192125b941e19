"""Anchors are assigned to objects once in a step, and as the student alone would do it."""

import pytest
import torch

from aid_d2.aid import Objects
from aid_d2.modeling import family_of, mask_ignore_regions
from aid_d2.modeling.families import assignment
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

FAMILIES = ("RetinaNet", "GFL", "FCOS", "FasterRCNN")


def step(model, batch):
    torch.manual_seed(0)
    with EventStorage(0):
        losses = model.train()(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    return losses


@pytest.fixture
def overlaps(monkeypatch):
    """How many images have been compared with all anchors."""
    seen, original = [], assignment.pairwise_iou

    def counted(boxes, anchors):
        seen.append(boxes)
        return original(boxes, anchors)

    monkeypatch.setattr(assignment, "pairwise_iou", counted)
    return seen


def with_region(batch, box=(0.0, 0, 60, 64)):
    for record in batch:
        old = record["instances"]
        record["instances"] = Instances(
            old.image_size,
            gt_boxes=Boxes.cat([old.gt_boxes, Boxes(torch.tensor([box]))]),
            gt_classes=torch.cat([old.gt_classes, torch.tensor([-1])]),
        )
    return batch


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_students_own_losses_are_those_of_the_student_alone(
    small_cfg, distilled_cfg, build_seeded, make_batch, family, regions
):
    """In a crowd, in an empty image, with ignore regions; and so are the gradients of its head."""
    plain = build_seeded(small_cfg(family), 0)
    model = build_seeded(distilled_cfg(family, {"DISTILL.WEIGHT": 0.0}), 0)
    batch = make_batch((60, 0, 3))
    if regions and family != "FCOS":
        mask_ignore_regions(plain)
        mask_ignore_regions(model)
        batch = with_region(batch)
    expected, losses = step(plain, batch), step(model, batch)
    for name, loss in expected.items():
        assert torch.equal(losses[name], loss), name
    heads = [family_of(x).head for x in (plain, model.student)]
    for own, distilled in zip(*(head.parameters() for head in heads)):
        torch.testing.assert_close(distilled.grad, own.grad)


@pytest.mark.parametrize("family", ["RetinaNet", "FasterRCNN"])
@pytest.mark.parametrize("size", [(64, 96), (32, 200)])
def test_all_who_ask_share_one_assignment(
    distilled_cfg, build_seeded, make_batch, overlaps, family, size
):
    """The student's loss, the teacher's and the student's for AID, and the methods."""
    changes = {"DISTILL.METHODS": ["GID", "ADL", "BCKD"], "DISTILL.AID.RELATIVE": True}
    model = build_seeded(distilled_cfg(family, changes), 0)
    step(model, make_batch((2, 1), size))
    of_truth = [boxes for boxes in overlaps if len(boxes) < 10]  # GID's instances are many
    assert len(of_truth) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL.ANCHOR_GENERATOR.SIZES": [[20], [40], [80], [160], [320]]},
        {"MODEL.RETINANET.IOU_THRESHOLDS": [0.3, 0.5]},
    ],
)
def test_a_teacher_with_another_assignment_keeps_its_own(
    small_cfg, distilled_cfg, build_seeded, make_batch, save_teacher, overlaps, changes
):
    cfg = small_cfg("RetinaNet", changes)
    teacher = save_teacher(cfg, build_seeded(cfg, 1))
    model = build_seeded(distilled_cfg("RetinaNet", teacher), 0)
    step(model, make_batch((2, 1)))
    assert len(overlaps) == 4


def test_other_objects_are_assigned_anew(small_cfg, build_seeded, make_batch, overlaps):
    model = build_seeded(small_cfg("RetinaNet"), 0)
    family = family_of(model)
    batch = make_batch((2,))
    with torch.no_grad():
        features = family.features(model.backbone(model.preprocess_image(batch).tensor))
        dense = family.dense(features, family.head(list(features.values())))
    owners = []
    for boxes in ([[0.0, 0, 30, 30]], [[40.0, 10, 90, 60]]):
        objects = Objects(torch.tensor(boxes), torch.tensor([0]), [1], [torch.zeros(0, 4)])
        owners += [family.owners(dense, objects), family.owners(dense, objects)]
    assert len(overlaps) == 2
    assert torch.equal(owners[0], owners[1]) and torch.equal(owners[2], owners[3])
    assert not torch.equal(owners[0], owners[2])


def test_labels_that_somebody_else_makes_are_kept(distilled_cfg, build_seeded, make_batch):
    """A subclass's, and those of a method that was replaced on the detector."""

    def everything_is_background(self, anchors, gt_instances):
        count = sum(map(len, anchors))
        labels = [torch.full((count,), self.num_classes) for _ in gt_instances]
        return labels, [torch.zeros(count, 4) for _ in gt_instances]

    class Odd(RetinaNet):
        label_anchors = everything_is_background

    by_class, by_instance = (build_seeded(distilled_cfg("RetinaNet"), 0) for _ in range(2))
    by_class.student.__class__ = Odd
    by_instance.student.label_anchors = everything_is_background.__get__(by_instance.student)
    for model in (by_class, by_instance):
        assert step(model, make_batch())["loss_box_reg"] == 0


def test_a_failed_step_leaves_the_detectors_own_labels(
    distilled_cfg, build_seeded, make_batch, monkeypatch
):
    model = build_seeded(distilled_cfg("RetinaNet"), 0)

    def fail(*args):
        raise RuntimeError("no losses today")

    monkeypatch.setattr(model.student, "losses", fail)
    with pytest.raises(RuntimeError, match="no losses today"):
        step(model, make_batch())
    assert "label_anchors" not in vars(model.student)
