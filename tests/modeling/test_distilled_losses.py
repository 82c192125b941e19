"""The losses of a distilled detector, and how AID and the keys change them."""

import pytest
import torch
from helpers.training import (
    FAMILIES,
    KD_LOSSES,
    assert_equal,
    distillation_of,
    gradients,
    losses_and_gradients,
    step,
)

from aid_d2 import AID
from aid_d2.aid import GRANULARITIES


@pytest.mark.parametrize("teacher", FAMILIES)
@pytest.mark.parametrize("student", FAMILIES)
def test_training_adds_its_losses_to_the_students(
    build_seeded, small_cfg, distilled_cfg, make_batch, student, teacher
):
    plain = step(build_seeded(small_cfg(student), 0), make_batch())
    losses = step(build_seeded(distilled_cfg(student, teacher=teacher), 0), make_batch())
    assert set(losses) == set(plain) | KD_LOSSES
    for name, loss in plain.items():
        assert torch.equal(losses[name], loss)
    for name in KD_LOSSES:
        assert losses[name].shape == () and losses[name].isfinite() and losses[name] > 0


@pytest.mark.parametrize("detector", FAMILIES)
def test_alpha_zero_is_distillation_without_aid_bit_for_bit(
    build_seeded, distilled_cfg, wide_teachers, make_batch, detector
):
    def run(changes):
        model = build_seeded(distilled_cfg(detector, {**wide_teachers[detector], **changes}), 0)
        return losses_and_gradients(model, make_batch((2, 0)))

    expected = run({"DISTILL.AID.ENABLED": False})
    for granularity in GRANULARITIES:
        actual = run({"DISTILL.AID.ALPHA": 0.0, "DISTILL.AID.GRANULARITY": granularity})
        for a, b in zip(actual, expected):
            assert_equal(a, b)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("detector", FAMILIES)
def test_aid_lowers_the_losses(build_seeded, distilled_cfg, make_batch, detector, granularity):
    model = build_seeded(distilled_cfg(detector), 0)

    def losses(alpha):
        model.aid = AID(alpha=alpha, granularity=granularity, relative=False)
        return step(model, make_batch((2, 1)))

    full, half, none = losses(0.0), losses(0.1), losses(1.0)
    for name in KD_LOSSES:
        assert full[name] > half[name] > none[name] > 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("detector", FAMILIES)
def test_relative_aid_trusts_a_teacher_that_is_no_worse_than_the_student(
    build_seeded, small_cfg, distilled_cfg, save_teacher, make_batch, detector, granularity
):
    changes = {"DISTILL.AID.RELATIVE": True, "DISTILL.AID.GRANULARITY": granularity}
    cfg, values = small_cfg(detector), []
    for teacher in (6, 5):
        files = save_teacher(cfg, build_seeded(cfg, seed=teacher))
        model = build_seeded(distilled_cfg(detector, {**files, **changes}), seed=5)
        method = model.distiller["NonLocal"]
        method.register_forward_pre_hook(lambda _, args: values.append(args[0].weights))
        step(model, make_batch((2, 0)))
    assert any((x < 1).any() for x in values[0].maps.values())
    assert all((x == 1).all() for x in values[1].maps.values())


def test_relative_aid_needs_a_teacher_of_the_students_kind(build_seeded, distilled_cfg):
    changes = {"DISTILL.AID.RELATIVE": True}
    with pytest.raises(ValueError, match="AID.RELATIVE.*RetinaNet.*GeneralizedRCNN"):
        build_seeded(distilled_cfg("RetinaNet", changes, teacher="FasterRCNN"), 0)


@pytest.mark.parametrize(
    "detector,key,value,message",
    [
        ("RetinaNet", "RETINANET.BBOX_REG_LOSS_TYPE", "giou", "box loss"),
        ("RetinaNet", "RETINANET.BBOX_REG_WEIGHTS", (2.0, 2.0, 2.0, 2.0), "box transform"),
        ("FCOS", "FCOS.FOCAL_LOSS_GAMMA", 1.0, "focal loss"),
        ("GFL", "GFL.GIOU_LOSS_WEIGHT", 1.0, "giou_loss_weight"),
        ("FasterRCNN", "RPN.LOSS_WEIGHT", 2.0, "loss_weight"),
        ("FasterRCNN", "ROI_BOX_HEAD.SMOOTH_L1_BETA", 1.0, "smooth_l1_beta"),
        ("RetinaNet", "ANCHOR_GENERATOR.OFFSET", 0.5, "anchors"),
        ("RetinaNet", "RETINANET.IOU_THRESHOLDS", [0.3, 0.4], "matching"),
        ("FCOS", "FCOS.CENTER_SAMPLING_RADIUS", 2.5, "radius"),
        ("GFL", "GFL.ATSS_CANDIDATES", 5, "atss_candidates"),
        ("FasterRCNN", "RPN.IOU_THRESHOLDS", [0.2, 0.6], "matching of the RPN"),
        ("FasterRCNN", "RPN.POSITIVE_FRACTION", 0.25, "positive_fraction"),
    ],
    ids=str,
)
def test_relative_aid_needs_a_teacher_of_the_same_losses(
    build_seeded, small_cfg, distilled_cfg, save_teacher, detector, key, value, message
):
    cfg = small_cfg(detector, {f"MODEL.{key}": value})
    files = save_teacher(cfg, build_seeded(cfg, seed=6))
    with pytest.raises(ValueError, match=f"AID.RELATIVE.*{message}"):
        build_seeded(distilled_cfg(detector, {**files, "DISTILL.AID.RELATIVE": True}), 0)


@pytest.mark.parametrize("detector", FAMILIES)
def test_a_student_equal_to_its_teacher_learns_nothing_from_it(
    build_seeded, distilled_cfg, small_cfg, save_teacher, make_batch, detector
):
    cfg = small_cfg(detector)
    files = save_teacher(cfg, build_seeded(cfg, seed=5))
    model = build_seeded(distilled_cfg(detector, files), seed=5)
    losses = step(model, make_batch())
    distillation_of(losses).backward()
    assert all(losses[name] == 0 for name in KD_LOSSES)
    assert all((x == 0).all() for x in gradients(model).values())
    assert gradients(model.student)


def test_weight_and_warm_up_scale_the_losses(build_seeded, distilled_cfg, make_batch):
    changes = {"DISTILL.WEIGHT": 3.0, "DISTILL.WARMUP_ITERS": 10}
    expected = step(build_seeded(distilled_cfg("RetinaNet"), 0), make_batch())
    model = build_seeded(distilled_cfg("RetinaNet", changes), 0)
    for iteration, factor in ((0, 0.0), (1, 0.1), (5, 0.5), (10, 1.0), (25, 1.0)):
        losses = step(model, make_batch(), iteration)
        for name in KD_LOSSES:
            value = 3.0 * factor * expected[name].item()
            assert losses[name].item() == pytest.approx(value, rel=1e-5)
