"""Student and teacher that differ in pyramid, padding, channels or classes."""

from contextlib import nullcontext

import pytest
import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from helpers.training import FAMILIES, KD_LOSSES, step

from aid_d2.modeling.checks import check_classes
from aid_d2.modeling.context import pair_levels
from aid_d2.modeling.wrappers import wrap
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage


@pytest.mark.parametrize("student,teacher", [FAMILIES, FAMILIES[::-1]])
def test_mixed_pairs_share_the_levels_that_mean_the_same(build_seeded, small_cfg, student, teacher):
    detectors = [wrap(build_seeded(small_cfg(f), 0)) for f in (student, teacher)]
    assert [pair.stride for pair in pair_levels(*detectors).pairs] == [8, 16, 32]


@pytest.mark.parametrize("detector,strides", [("RetinaNet", 8), ("FasterRCNN", 4)])
def test_equal_pairs_share_five_levels(build_seeded, small_cfg, detector, strides):
    own = wrap(build_seeded(small_cfg(detector), 0))
    other = wrap(build_seeded(small_cfg(detector, {"MODEL.FPN.OUT_CHANNELS": 24}), 0))
    pairs = pair_levels(own, other).pairs
    assert [pair.stride for pair in pairs] == [strides * 2**i for i in range(5)]
    assert {(p.student_channels, p.teacher_channels) for p in pairs} == {(16, 24)}


def test_maps_of_different_padding_are_cropped_to_the_common_cells(
    build_seeded, distilled_cfg, make_batch
):
    """A teacher that pads more sees the same image in the same corner."""
    model = build_seeded(distilled_cfg("RetinaNet", {"DISTILL.AID.ENABLED": True}), 0)
    seen = []
    model.distiller["NonLocal"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = make_batch(size=(96, 100))
    model.teacher.model.backbone._size_divisibility = 128
    step(model, batch)
    student, teacher = seen[0].student, seen[0].teacher
    for stride, x in student.features.items():
        height, width = -(-96 // stride), -(-128 // stride)
        assert x.shape[-2:] == teacher.features[stride].shape[-2:] == (height, width)
        assert seen[0].weights.maps[stride].shape == (2, 1, height, width)
        assert x.dtype == teacher.features[stride].dtype == torch.float32
    whole = model.teacher.wrapper.forward_features(batch, "BGR", with_head=False).features
    assert whole[8].shape[-2:] == (16, 16)
    assert torch.equal(whole[8][..., :12, :16], teacher.features[8])


def flipped_copy(small_cfg, build_seeded, save_teacher, detector):
    """The student as it would be had it been trained on RGB, with another scale of the pixels."""
    mean, std = [10.0, 120.0, 95.0], [2.0, 4.0, 0.5]
    changes = {"MODEL.PIXEL_MEAN": mean, "MODEL.PIXEL_STD": std}
    student_cfg = small_cfg(detector, changes)
    model = build_seeded(student_cfg, 5)
    flipped = {"MODEL.PIXEL_MEAN": mean[::-1], "MODEL.PIXEL_STD": std[::-1], "INPUT.FORMAT": "RGB"}
    stem = model.backbone.bottom_up.stem.conv1
    stem.weight.data = stem.weight.data.flip(1)
    return changes, save_teacher(small_cfg(detector, flipped), model)


@pytest.mark.parametrize("detector", FAMILIES)
def test_teacher_sees_its_own_channel_order_and_normalisation(
    build_seeded, small_cfg, distilled_cfg, save_teacher, make_batch, detector
):
    changes, files = flipped_copy(small_cfg, build_seeded, save_teacher, detector)
    model = build_seeded(distilled_cfg(detector, {**changes, **files}), 5)
    batch = make_batch()
    image = batch[0]["image"].clone()
    teacher = model.teacher.wrapper.forward_features(batch, "BGR", with_head=False).features
    with torch.no_grad():
        student = model.student.backbone(model.student.preprocess_image(batch).tensor)
    for x, y in zip(teacher.values(), student.values()):
        # The stem adds its channels up in another order.
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * y.abs().max().item())
    assert torch.equal(batch[0]["image"], image)


@pytest.mark.parametrize(
    "precision,dtype", [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_of_the_teacher_is_its_own(
    build_seeded, distilled_cfg, make_batch, precision, dtype
):
    """Under the student's autocast or without."""
    model = build_seeded(distilled_cfg("RetinaNet", {"DISTILL.PRECISION": precision}), 0)
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model.teacher.wrapper.forward_features(make_batch(), "BGR", with_head=True)
        assert {x.dtype for x in outputs.features.values()} == {dtype}
        assert outputs.head_outputs[0][0].dtype == dtype


def test_a_compiled_backbone_is_not_looked_into(build_seeded, distilled_cfg):
    for key in ("SOLVER.COMPILE", "DISTILL.TEACHER.COMPILE"):
        cfg = distilled_cfg("RetinaNet", {key: True, "DISTILL.METHODS": ("Dist2",)})
        with pytest.raises(ValueError, match=f"Dist2 looks into the backbone(.|\n)*{key} False"):
            build_seeded(cfg, 0)


def test_other_kinds_of_channels_are_refused(small_cfg, build_seeded, distilled_cfg, save_teacher):
    cfg = small_cfg("RetinaNet", {"INPUT.FORMAT": "YUV-BT.601"})
    files = save_teacher(cfg, build_seeded(cfg, 0))
    with pytest.raises(ValueError, match="INPUT.FORMAT.*YUV-BT.601"):
        build_seeded(distilled_cfg("RetinaNet", files), 0)


def test_other_number_of_classes_needs_aid_off(
    small_cfg, build_seeded, distilled_cfg, save_teacher, make_batch
):
    cfg = small_cfg("RetinaNet", {"MODEL.RETINANET.NUM_CLASSES": 7})
    files = save_teacher(cfg, build_seeded(cfg, 0))
    with pytest.raises(ValueError, match="7 classes.*3.*DISTILL.AID.ENABLED"):
        build_seeded(distilled_cfg("RetinaNet", files), 0)
    off = {**files, "DISTILL.AID.ENABLED": False}
    losses = step(build_seeded(distilled_cfg("RetinaNet", off), 0), make_batch())
    assert KD_LOSSES <= set(losses)


@pytest.mark.parametrize("aid", [True, False])
def test_the_teachers_classes_are_compared_by_name(distilled_cfg, build_seeded, caplog, aid):
    """Where it matters; of classes that nothing is known of nothing is said."""
    cfg = distilled_cfg("RetinaNet", {"DISTILL.AID.ENABLED": aid})
    model = build_seeded(cfg, 0)
    MetadataCatalog.get("told_ours").thing_classes = ["car", "van", "truck"]
    for names in (None, ["car", "van", "truck"]):
        model.teacher.class_names = names
        check_classes(model, ("told_ours",))
    model.teacher.class_names = ["car", "van", "lorry"]
    check_classes(model, ("told_ours",))
    assert ("Unknown to it: truck" in caplog.text) == aid
    model.teacher.class_names = ["van", "car", "truck"]
    with pytest.raises(ValueError, match="another order") if aid else nullcontext():
        check_classes(model, ("told_ours",))


def test_precise_batch_norm_is_that_of_the_student(build_seeded, distilled_cfg, make_batch):
    """TEST.PRECISE_BN recomputes the statistics of every norm in training mode."""
    cfg = distilled_cfg("RetinaNet", {"MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0})
    model = build_seeded(cfg, 0).train()
    norms = {m for m in model.student.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert norms and norms == set(get_bn_modules(model))
    before = model.student.backbone.bottom_up.stem.conv1.norm.running_mean.clone()
    with EventStorage(0):
        update_bn_stats(model, [make_batch()] * 2, 2)
    after = model.student.backbone.bottom_up.stem.conv1.norm.running_mean
    assert after.isfinite().all() and not torch.equal(after, before)
