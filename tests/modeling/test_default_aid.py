"""The default AID: one weight for the batch, relative to the student, and off for unlike pairs."""

import logging

import numpy as np
import pytest
import torch
from helpers.training import DEFAULT_AID, FAMILIES, KD_LOSSES, assert_equal, batch_weight, step

from aid_d2.aid import GAP_MOMENTUM, add_gap, batch_loss, mean_gap
from aid_d2.structures import Objects
from detectron2.utils.events import EventStorage

# Detectors with random weights have large losses.
ALPHA = 0.05


@pytest.fixture
def pair(build_seeded, distilled_cfg, small_cfg, save_teacher):
    """`pair(detector, worse)`: a student of seed 5 and a teacher whose boxes are `worse` off."""

    def make(detector="RetinaNet", worse=0.0):
        cfg = small_cfg(detector)
        teacher = build_seeded(cfg, seed=6)
        head = teacher.head if detector == "RetinaNet" else teacher.proposal_generator.rpn_head
        last = head.bbox_pred if detector == "RetinaNet" else head.anchor_deltas
        with torch.no_grad():
            last.bias += worse
        changes = {**save_teacher(cfg, teacher), **DEFAULT_AID, "DISTILL.AID.ALPHA": ALPHA}
        return build_seeded(distilled_cfg(detector, changes), 5)

    return make


def train_some(model, batch, iterations):
    """Losses of each iteration, from the one that the storage is at; nothing learns."""
    model.train()
    history = []
    for iteration in iterations:
        torch.manual_seed(0)
        with EventStorage(iteration):
            history.append({k: x.detach() for k, x in model(batch).items()})
    return history


@pytest.mark.parametrize("detector", FAMILIES)
def test_weight_is_of_the_gap_in_every_fourth_iteration_and_stays(pair, make_batch, detector):
    model, batch = pair(detector, worse=0.1), make_batch((2, 1))
    judged, heads = [], []
    for wrapper in (model.context.teacher, model.context.student):

        def judge(outputs, objects, inner=wrapper.judge):
            judged.append(inner(outputs, objects))
            return judged[-1]

        wrapper.judge = judge
    head = model.context.teacher.head
    head.register_forward_hook(lambda *_: heads.append(len(heads)))

    history = train_some(model, batch, range(8))
    assert len(judged) == 4 and len(heads) == 2
    teacher, student = (batch_loss(x).double().item() for x in judged[:2])
    assert teacher > student
    weight = torch.tensor(-ALPHA * (teacher - student), dtype=torch.float64).exp().item()
    assert 0.01 < weight < 0.99
    assert batch_weight(model) == pytest.approx(weight, rel=1e-4)
    for name in KD_LOSSES:
        values = [losses[name].item() for losses in history]
        assert values[:3] == [values[0]] * 3
        assert values[3:] == pytest.approx([weight * values[0]] * 5, rel=1e-4)


def test_a_teacher_no_worse_than_the_student_is_distilled_as_without_aid(
    build_seeded, small_cfg, distilled_cfg, save_teacher, make_batch
):
    cfg = small_cfg("RetinaNet")
    student = build_seeded(cfg, seed=5)
    with torch.no_grad():
        student.head.bbox_pred.bias += 0.5
    history = []
    for changes in (DEFAULT_AID, {"DISTILL.AID.ENABLED": False}):
        files = save_teacher(cfg, build_seeded(cfg, seed=5))
        model = build_seeded(distilled_cfg("RetinaNet", {**files, **changes}), 5)
        model.load_state_dict(student.state_dict(), strict=False)
        history.append(train_some(model, make_batch((2, 1)), range(5)))
    for with_aid, without in zip(*history):
        assert_equal(with_aid, without)


def test_weight_of_the_batch_is_restored_and_none_of_the_students_business(
    pair, make_batch, build_seeded, small_cfg
):
    model, batch = pair(worse=0.1), make_batch((2, 1))
    train_some(model, batch, range(4))
    saved = model.state_dict()
    assert mean_gap(saved["distiller.aid_gap"]) > 0.1
    plain = build_seeded(small_cfg("RetinaNet"), 1)
    assert not any("aid" in key for key in plain.state_dict())
    unknown = plain.load_state_dict(saved, strict=False).unexpected_keys
    assert unknown and all(key.startswith("distiller.") for key in unknown)

    resumed = pair(worse=0.1)
    resumed.load_state_dict(saved)
    for one, other in zip(train_some(model, batch, (4, 5)), train_some(resumed, batch, (4, 5))):
        for name in KD_LOSSES:  # Detectron2's RetinaNet does not save its own running mean
            assert one[name] == other[name] > 0


def test_it_is_off_and_says_so_where_losses_cannot_be_compared(
    distilled_cfg, build_seeded, make_batch, caplog
):
    caplog.set_level(logging.INFO, logger="aid_d2")
    model = build_seeded(distilled_cfg("RetinaNet", DEFAULT_AID, teacher="FasterRCNN"), 0)
    assert not model.aid.enabled and not model.needs_teacher_head
    assert "AID is off" in caplog.text and "RetinaNet" in caplog.text
    losses = step(model, make_batch((2, 1)))
    off = {"DISTILL.AID.ENABLED": False}
    without = build_seeded(distilled_cfg("RetinaNet", off, teacher="FasterRCNN"), 0)
    assert_equal(losses, step(without, make_batch((2, 1))))


@pytest.mark.parametrize(
    "of_teacher,reason",
    [
        ({"MODEL.ROI_HEADS.NUM_CLASSES": 5}, "5 classes"),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (30.0, 30.0, 15.0, 15.0)}, "box transform"),
        ({"MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5}, "smooth_l1_beta"),
    ],
)
def test_it_is_off_for_other_classes_or_losses_and_a_chosen_one_is_refused(
    small_cfg, distilled_cfg, build_seeded, save_teacher, caplog, of_teacher, reason
):
    caplog.set_level(logging.INFO, logger="aid_d2")
    cfg = small_cfg("FasterRCNN", of_teacher)
    files = {**save_teacher(cfg, build_seeded(cfg, 0)), "DISTILL.METHODS": ("PKD",)}
    model = build_seeded(distilled_cfg("FasterRCNN", {**files, **DEFAULT_AID}), 0)
    assert not model.aid.enabled and reason in caplog.text
    for chosen in ({"DISTILL.AID.ALPHA": 4.0}, {"DISTILL.AID.MASKS": True}):
        with pytest.raises(ValueError, match=reason):
            build_seeded(distilled_cfg("FasterRCNN", {**files, **DEFAULT_AID, **chosen}), 0)


def test_a_weight_that_came_with_the_students_file_does_not_count(pair, make_batch):
    model, batch = pair(worse=0.1), make_batch((2, 1))
    (fresh,) = train_some(model, batch, (0,))
    with torch.no_grad():
        model.distiller.aid_gap.copy_(torch.tensor([100.0, 1.0]))
    (again,) = train_some(model, batch, (0,))
    assert all(again[name] == fresh[name] > 0 for name in KD_LOSSES)


def test_the_gap_is_a_running_mean_of_those_judged():
    gaps, gap = [3.0, -1.0, 0.5, 2.0, 0.0], torch.zeros(2)
    assert mean_gap(gap) == 0
    for count in range(1, len(gaps) + 1):
        mean = add_gap(gap, torch.tensor(gaps[count - 1])).item()
        weights = [GAP_MOMENTUM ** (count - 1 - i) for i in range(count)]
        assert mean == pytest.approx(np.average(gaps[:count], weights=weights), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_batch_does_not_stay_in_the_gap(bad):
    gap = torch.zeros(2)
    assert add_gap(gap, torch.tensor(bad)) > 10
    for _ in range(100):
        mean = add_gap(gap, torch.tensor(0.25)).item()
    assert mean == pytest.approx(0.25, rel=1e-4)


def test_passes_without_gradient_leave_the_gap_alone(pair, make_batch):
    """Those of Detectron2's PreciseBN, in a storage of their own."""
    model, batch = pair(worse=0.1), make_batch((2, 1))
    train_some(model, batch, range(4))
    gap = model.distiller.aid_gap.clone()
    with torch.no_grad(), EventStorage(0):
        model(batch)
    assert gap[1] > 0 and torch.equal(model.distiller.aid_gap, gap)


def test_a_gfl_that_finds_nothing_is_no_good_teacher(
    small_cfg, distilled_cfg, build_seeded, save_teacher, make_batch
):
    """Its own loss, of soft labels, is smaller than that of one that finds something."""
    cfg, gaps = small_cfg("GFL"), []
    for of_teacher, of_student in ((-20.0, -4.0), (-4.0, -20.0)):
        teacher = build_seeded(cfg, seed=5)
        student = build_seeded(cfg, seed=5)
        for model, bias in ((teacher, of_teacher), (student, of_student)):
            with torch.no_grad():
                model.head.cls_score.bias.fill_(bias)
        changes = {**save_teacher(cfg, teacher), **DEFAULT_AID}
        model = build_seeded(distilled_cfg("GFL", changes), 5)
        model.load_state_dict(student.state_dict(), strict=False)
        step(model, make_batch((2, 1)))
        gaps.append(mean_gap(model.distiller.aid_gap).item())
    assert gaps[0] > 1 and gaps[1] < -1


def test_weights_relative_to_no_student_are_refused(pair, make_batch):
    model, batch = pair(), make_batch((2, 1))
    teacher = model.teacher.wrapper
    outputs = teacher.forward_features(batch, "BGR", with_head=True)
    losses = teacher.judge(outputs, Objects.from_inputs(batch, torch.device("cpu")))
    with pytest.raises(ValueError, match="relative"):
        model.aid.weights(losses)
