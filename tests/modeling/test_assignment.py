"""Anchors are assigned to objects once in a step, and as the student alone would do it."""

from functools import wraps

import pytest
import torch
from torch import nn

from aid_d2.modeling import gfl
from aid_d2.modeling.ignore_regions import mask_ignore_regions
from aid_d2.modeling.wrappers import wrap
from aid_d2.modeling.wrappers.retinanet import RetinaNetWrapper
from aid_d2.structures import Objects
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

FAMILIES = ("RetinaNet", "GFL", "FCOS", "FasterRCNN")
SHARING = ("RetinaNet", "GFL", "FasterRCNN")


def step(model, batch):
    torch.manual_seed(0)
    with EventStorage(0):
        losses = model.train()(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    return losses


def spied(monkeypatch, matched_idxs, name):
    """The arguments of each call of a function from now on."""
    seen, original = [], getattr(matched_idxs, name)

    def spy(*args):
        seen.append(args)
        return original(*args)

    monkeypatch.setattr(matched_idxs, name, spy)
    return seen


def assert_same_training(plain, model, batch):
    expected, losses = step(plain, batch), step(model, batch)
    for name, loss in expected.items():
        assert torch.equal(losses[name], loss), name
    heads = [wrap(x).head for x in (plain, model.student)]
    for own, distilled in zip(*(head.parameters() for head in heads)):
        torch.testing.assert_close(distilled.grad, own.grad)


@pytest.fixture
def both(small_cfg, distilled_cfg, build_seeded):
    """`both(wrapper, changes)`: a plain detector, and a DistilledDetector that starts as it."""

    def build(wrapper, changes=None):
        plain = build_seeded(small_cfg(wrapper, changes), 0)
        # Without AID a teacher with other anchors will do.
        changes = {**(changes or {}), "DISTILL.WEIGHT": 0.0, "DISTILL.AID.ENABLED": False}
        return plain, build_seeded(distilled_cfg(wrapper, changes), 0)

    return build


@pytest.mark.parametrize("detector", FAMILIES)
def test_a_students_own_losses_are_those_of_the_student_alone(both, make_batch, detector):
    """In a crowd and in an empty image; and so are the gradients of its head."""
    assert_same_training(*both(detector), make_batch((60, 0, 3)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wrapper", SHARING)
def test_regions_to_be_ignored_are_the_students_own_affair(
    both, make_batch, with_ignore_region, wrapper, masked
):
    """Masked, or taken for objects by a detector that does not know better."""
    models = both(wrapper)
    batch = with_ignore_region(make_batch((3, 2)), [0.0, 0, 60, 64])
    if masked:
        for model in models:
            mask_ignore_regions(model)
    assert_same_training(*models, batch)


@pytest.mark.parametrize(
    "detector,changes",
    [
        ("RetinaNet", {"MODEL.RETINANET.IOU_LABELS": [-1, 0, 1]}),
        ("FasterRCNN", {"MODEL.RPN.IOU_LABELS": [-1, 0, 1]}),
        ("FasterRCNN", {"MODEL.RPN.BOUNDARY_THRESH": 0}),
    ],
)
def test_unusual_rules_of_the_student_hold(both, make_batch, detector, changes):
    assert_same_training(*both(detector, changes), make_batch((3, 0)))


class StricterMatcher(Matcher):
    def __call__(self, iou):
        return super().__call__(iou * 0.8)


class ShiftedAnchors(DefaultAnchorGenerator):
    def forward(self, features):
        return [Boxes(x.tensor + 2) for x in super().forward(features)]


class AnchorsOfItsOwn(nn.Module):
    """An anchor generator that has only what Detectron2 asks of one."""

    def __init__(self, generator):
        super().__init__()
        self.generate = generator
        self.num_anchors, self.box_dim = generator.num_anchors, generator.box_dim

    def forward(self, features):
        return self.generate(features)


@pytest.mark.parametrize("wrapper", ["RetinaNet", "FasterRCNN"])
@pytest.mark.parametrize("part", [StricterMatcher, ShiftedAnchors, AnchorsOfItsOwn])
def test_parts_of_ones_own_are_the_students(both, make_batch, wrapper, part):
    plain, model = both(wrapper)
    for detector in (plain, model.student):
        holder = detector if wrapper == "RetinaNet" else detector.proposal_generator
        if part is AnchorsOfItsOwn:
            holder.anchor_generator = part(holder.anchor_generator)
        elif part is ShiftedAnchors:
            holder.anchor_generator.__class__ = part
        else:
            holder.anchor_matcher.__class__ = part
    assert_same_training(plain, model, make_batch((5, 2)))


def test_a_student_that_leaves_objects_out_leaves_them_out(both, make_batch):
    class Selective(RetinaNet):
        def forward_training(self, images, features, predictions, gt_instances):
            kept = [x[x.gt_classes > 0] for x in gt_instances]
            return super().forward_training(images, features, predictions, kept)

    plain, model = both("RetinaNet")
    plain.__class__ = model.student.__class__ = Selective
    assert_same_training(plain, model, make_batch((8, 6)))


def everything_is_background(self, anchors, gt_instances):
    count = sum(map(len, anchors))
    labels = [torch.full((count,), self.num_classes) for _ in gt_instances]
    return labels, [torch.zeros(count, 4) for _ in gt_instances]


@pytest.mark.parametrize("where", ["subclass", "class", "detector"])
def test_labels_that_somebody_else_makes_are_kept(both, make_batch, monkeypatch, where):
    _, model = both("RetinaNet")
    student = model.student
    if where == "subclass":
        student.__class__ = type("Odd", (RetinaNet,), {"label_anchors": everything_is_background})
    elif where == "class":
        replaced = wraps(RetinaNet.label_anchors)(everything_is_background)
        monkeypatch.setattr(RetinaNet, "label_anchors", replaced)
    else:
        student.label_anchors = everything_is_background.__get__(student)
    before = student.label_anchors
    assert step(model, make_batch())["loss_box_reg"] == 0
    assert student.label_anchors == before


@pytest.mark.parametrize("detector", SHARING)
@pytest.mark.parametrize("size", [(64, 96), (32, 200)])
def test_all_who_ask_share_one_assignment(
    distilled_cfg, build_seeded, make_batch, monkeypatch, detector, size
):
    """The student's loss, the teacher's and the student's for AID, and the methods."""
    changes = {"DISTILL.METHODS": ["GID", "ADL", "BCKD"], "DISTILL.AID.RELATIVE": True}
    model = build_seeded(distilled_cfg(detector, changes), 0)
    atss = spied(monkeypatch, gfl, "atss_match")
    matched = spied(monkeypatch, Matcher, "__call__")
    seen = spied(monkeypatch, type(wrap(model.student)), "assign")
    step(model, make_batch((2, 1), size))
    assert len([objects for *_, objects in seen if objects.counts == [2, 1]]) == 1
    # A box head matches proposals too.
    own = getattr(model.student, "proposal_generator", model.student)
    if detector == "GFL":
        assert not atss
    else:
        assert own.anchor_matcher not in [matcher for matcher, _ in matched]


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL.ANCHOR_GENERATOR.SIZES": [[20], [40], [80], [160], [320]]},
        {"MODEL.RETINANET.IOU_THRESHOLDS": [0.3, 0.5]},
        {},
    ],
)
def test_a_teacher_with_another_assignment_keeps_its_own(
    small_cfg, distilled_cfg, build_seeded, make_batch, save_teacher, monkeypatch, changes
):
    cfg = small_cfg("RetinaNet", changes)
    teacher = save_teacher(cfg, build_seeded(cfg, 1))
    model = build_seeded(distilled_cfg("RetinaNet", teacher), 0)
    if not changes:  # its padding makes the maps larger
        model.teacher.model.backbone._size_divisibility = 160
    seen = spied(monkeypatch, RetinaNetWrapper, "assign")
    step(model, make_batch((2, 1)))
    assert [wrapper.model for wrapper, *_ in seen] == [model.student, model.teacher.model]


def test_other_objects_are_assigned_anew(small_cfg, build_seeded, make_batch, monkeypatch):
    model = build_seeded(small_cfg("RetinaNet"), 0)
    wrapper = wrap(model)
    with torch.no_grad():
        images = model.preprocess_image(make_batch((2,))).tensor
        features = wrapper.features(model.backbone(images))
        predictions = wrapper.predictions(features, wrapper.head(list(features.values())))
    seen = spied(monkeypatch, RetinaNetWrapper, "assign")
    matches = []
    for boxes in ([[0.0, 0, 30, 30]], [[40.0, 10, 90, 60]]):
        objects = Objects(torch.tensor(boxes), torch.tensor([0]), [1], [torch.zeros(0, 4)])
        matches += [
            wrapper.matched_idxs(predictions, objects),
            wrapper.matched_idxs(predictions, objects),
        ]
    assert len(seen) == 2
    assert torch.equal(matches[0], matches[1]) and torch.equal(matches[2], matches[3])
    assert not torch.equal(matches[0], matches[2])
