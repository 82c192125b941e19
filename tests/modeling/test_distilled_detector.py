"""What a user relies on when a student is trained with a teacher."""

import copy
import gc
import random
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

from aid_d2.aid import GRANULARITIES, aid_weights
from aid_d2.distillers import Distiller
from aid_d2.modeling import (
    DistilledDetector,
    Teacher,
    check_classes,
    mask_ignore_regions,
    wrap,
)
from aid_d2.modeling.context import pair_levels
from detectron2.data import MetadataCatalog
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

FAMILIES = ("RetinaNet", "FasterRCNN")
KD_LOSSES = {
    "loss_AttentionGuided_feature",
    "loss_AttentionGuided_channel",
    "loss_AttentionGuided_spatial",
    "loss_NonLocal_relation",
}
# Teacher of another width, so that no adapter is the identity.
WIDE = {"MODEL.FPN.OUT_CHANNELS": 24}


@pytest.fixture(scope="module")
def wide_teachers(small_cfg, build_seeded, save_teacher):
    result = {}
    for detector in FAMILIES:
        cfg = small_cfg(detector, WIDE)
        result[detector] = save_teacher(cfg, build_seeded(cfg, seed=101))
    return result


def step(model, batch, iteration=0, seed=0):
    """Losses of one training step, its random numbers seeded."""
    torch.manual_seed(seed)
    model.train()
    with EventStorage(iteration):
        return model(batch)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def losses_and_gradients(model, batch, iteration=0):
    model.zero_grad()
    losses = step(model, batch, iteration)
    sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}, gradients(model)


def distillation_of(losses):
    return sum(loss for name, loss in losses.items() if name in KD_LOSSES)


def spy(function, returned):
    """The function, whose results are also appended to a list."""

    def spied(*args, **kwargs):
        returned.append(function(*args, **kwargs))
        return returned[-1]

    return spied


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


# --- the losses


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
        model.weigh = partial(aid_weights, alpha=alpha, granularity=granularity)
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
        model.weigh = spy(model.weigh, values)
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
        ("RetinaNet", "RETINANET.BBOX_REG_LOSS_TYPE", "giou", "box_reg_loss_type"),
        ("RetinaNet", "RETINANET.BBOX_REG_WEIGHTS", (2.0, 2.0, 2.0, 2.0), "box transform"),
        ("FCOS", "FCOS.FOCAL_LOSS_GAMMA", 1.0, "focal_loss_gamma"),
        ("GFL", "GFL.GIOU_LOSS_WEIGHT", 1.0, "giou_loss_weight"),
        ("FasterRCNN", "RPN.LOSS_WEIGHT", 2.0, "loss_weight"),
        ("FasterRCNN", "ROI_BOX_HEAD.SMOOTH_L1_BETA", 1.0, "smooth_l1_beta"),
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


# --- plain training


def train(model, cfg, batch, steps=3):
    """Losses of the student, and parameters, of an optimizer at work on one batch."""
    optimizer = build_optimizer(cfg, model)
    history = []
    model.train()
    with EventStorage(0) as storage:
        for _ in range(steps):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            storage.step()
            history.append({n: x.detach() for n, x in losses.items() if n not in KD_LOSSES})
    student = getattr(model, "student", model)
    return history, {name: p.detach().clone() for name, p in student.named_parameters()}


def seed_everything(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_state():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("detector", FAMILIES)
def test_weight_zero_equals_plain_training(
    build_seeded, small_cfg, distilled_cfg, make_batch, detector, clip
):
    common = {
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.CLIP_GRADIENTS.ENABLED": clip,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
    }
    results = []
    for cfg in (
        small_cfg(detector, common),
        distilled_cfg(detector, {**common, "DISTILL.WEIGHT": 0.0}),
    ):
        model = build_seeded(cfg, 3)
        seed_everything(4)
        results.append((*train(model, cfg, make_batch((2, 1))), random_state()))
    plain, distilled = results
    for a, b in zip(plain[0], distilled[0]):
        assert_equal(a, b)
    assert_equal(plain[1], distilled[1])
    assert plain[2] == distilled[2]
    initial = dict(build_seeded(small_cfg(detector), 3).named_parameters())
    assert any(not torch.equal(initial[name], p) for name, p in plain[1].items())


@pytest.mark.parametrize("detector", FAMILIES)
def test_building_leaves_random_numbers_and_the_students_start_alone(
    small_cfg, distilled_cfg, build_seeded, detector
):
    results = []
    for cfg in (small_cfg(detector), distilled_cfg(detector)):
        seed_everything(7)
        model = build_seeded(cfg, 7)
        student = getattr(model, "student", model)
        results.append((student.state_dict(), random_state()))
    assert_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_the_adapters_do_not_start_alike_by_accident_of_the_seed(distilled_cfg, build_seeded):
    """Two seeds give two starts, though the student's random numbers are kept apart."""
    wide = {"DISTILL.METHODS": ["NonLocal"]}
    a, b = (build_seeded(distilled_cfg("RetinaNet", wide), seed) for seed in (0, 1))
    key = "student_blocks.8.project.weight"
    first, second = (dict(m.distiller["NonLocal"].named_parameters())[key] for m in (a, b))
    assert not torch.equal(first, second)


# --- inference and the switch


def assert_same_detections(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        x, y = x["instances"], y["instances"]
        assert torch.equal(x.pred_boxes.tensor, y.pred_boxes.tensor)
        assert torch.equal(x.scores, y.scores)
        assert torch.equal(x.pred_classes, y.pred_classes)


def detect(model, batch):
    """Detections with every score, of which a detector without training has many."""
    detector = getattr(model, "student", model)
    if hasattr(detector, "roi_heads"):
        detector.roi_heads.box_predictor.test_score_thresh = 0.0
    else:
        detector.test_score_thresh = 0.0
    model.eval()
    with torch.no_grad():
        detections = model(batch)
    assert all(len(x["instances"]) for x in detections)
    return detections


@pytest.mark.parametrize("detector", FAMILIES)
def test_inference_is_the_students(build_seeded, small_cfg, distilled_cfg, make_batch, detector):
    plain, model = (build_seeded(cfg, 0) for cfg in (small_cfg(detector), distilled_cfg(detector)))
    assert_same_detections(detect(plain, make_batch()), detect(model, make_batch()))


@pytest.mark.parametrize("detector", FAMILIES)
def test_switched_off_it_is_the_student_and_needs_no_teacher(
    build_seeded, small_cfg, distilled_cfg, make_batch, detector
):
    off = {
        "DISTILL.ENABLED": False,
        "DISTILL.TEACHER.CONFIG_FILE": "",
        "DISTILL.TEACHER.WEIGHTS": "",
    }
    plain, model = (
        build_seeded(cfg, 0) for cfg in (small_cfg(detector), distilled_cfg(detector, off))
    )
    assert_equal(plain.state_dict(), dict(model.state_dict()))
    assert_equal(step(plain, make_batch()), step(model, make_batch()))
    assert_same_detections(detect(plain, make_batch()), detect(model, make_batch()))


# --- the teacher


def with_bn(small_cfg, build_seeded, save_teacher, detector):
    """A teacher whose statistics would move in train mode."""
    cfg = small_cfg(detector, {"MODEL.RESNETS.NORM": "BN", "MODEL.FPN.NORM": "BN"})
    return save_teacher(cfg, build_seeded(cfg, 11))


@pytest.mark.parametrize("detector", FAMILIES)
def test_teacher_stays_frozen(
    build_seeded, small_cfg, distilled_cfg, save_teacher, make_batch, detector
):
    files = with_bn(small_cfg, build_seeded, save_teacher, detector)
    cfg = distilled_cfg(detector, {**files, "SOLVER.BASE_LR": 1e-4})
    model = build_seeded(cfg, 0)
    before = copy.deepcopy(model.teacher.model.state_dict())
    assert any(key.endswith("running_mean") for key in before)
    for _ in range(2):
        model.eval()
        model.train()
        train(model, cfg, make_batch(), steps=1)
    assert not any(m.training for m in model.teacher.model.modules())
    assert not any(p.requires_grad for p in model.teacher.model.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())
    assert_equal(before, model.teacher.model.state_dict())


def test_teacher_belongs_to_no_module(build_seeded, distilled_cfg):
    cfg = distilled_cfg("RetinaNet")
    model = build_seeded(cfg, 0)
    mine = {id(p) for p in [*model.parameters(), *model.buffers()]}
    optimized = {id(p) for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    saved = {x.data_ptr() for x in model.state_dict().values() if x.numel()}
    for p in [*model.teacher.model.parameters(), *model.teacher.model.buffers()]:
        assert id(p) not in mine and id(p) not in optimized
        assert p.numel() == 0 or p.data_ptr() not in saved
    assert not set(model.modules()) & set(model.teacher.model.modules())
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in model.distiller.parameters()} <= trainable == optimized


def test_teacher_follows_the_student(build_seeded, distilled_cfg):
    model = build_seeded(distilled_cfg("RetinaNet"), 0).to(torch.float64)
    for part in (model.student, model.distiller, model.teacher.model):
        tensors = [*part.parameters(), *part.buffers()]
        assert {x.dtype for x in tensors if x.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("wrapper", FAMILIES)
def test_teacher_leaves_the_students_curves_alone(
    build_seeded, small_cfg, distilled_cfg, make_batch, wrapper
):
    """At any iteration only teacher/* and aid/* are added, and at some they are."""
    plain, model = (build_seeded(cfg, 0) for cfg in (small_cfg(wrapper), distilled_cfg(wrapper)))
    added = set()
    for iteration in (0, 1, 19, 20):
        curves = []
        for detector in (plain, model):
            torch.manual_seed(0)
            detector.train()
            with EventStorage(iteration) as storage:
                detector(make_batch())
            curves.append({k: v.latest() for k, v in storage.histories().items()})
            histograms = {name for name, *_ in (x.values() for x in storage._histograms)}
            added |= histograms if detector is model else set()
            assert detector is model or not histograms
        assert {k: curves[1][k] for k in curves[0]} == curves[0]
        added |= set(curves[1]) - set(curves[0])
    assert added and all(name.startswith(("teacher/", "aid/")) for name in added)
    losses = {"RetinaNet": {"dense"}, "FasterRCNN": {"dense", "roi"}}[wrapper]
    assert {x for x in added if x.startswith("teacher/")} == {f"teacher/loss_{x}" for x in losses}


def test_logged_weights_are_the_mean_of_the_maps(build_seeded, distilled_cfg, make_batch):
    """With `level` granularity a map has one value, exp(-alpha x loss)."""
    changes = {"DISTILL.AID.GRANULARITY": "level", "DISTILL.AID.ALPHA": 0.1}
    model = build_seeded(distilled_cfg("RetinaNet", changes), 0).train()
    for iteration in (0, 19, 20):
        with EventStorage(iteration) as storage:
            model(make_batch())
        curves = {k: v.latest() for k, v in storage.histories().items()}
        logged = [curves[k] for k in curves if k.startswith("aid/weight_stride")]
        if logged:
            # The levels' losses add up to the detector's, and so their weights multiply.
            loss = curves["teacher/loss_dense"]
            assert np.prod(logged) == pytest.approx(np.exp(-0.1 * loss), rel=1e-4)
            hints = storage.smoothing_hints()
            assert not any(hints[k] for k in curves if k.startswith(("aid/", "teacher/")))
            return
    pytest.fail("nothing was logged")


@pytest.mark.parametrize("main", [True, False])
def test_only_the_process_with_the_writers_keeps_histograms(
    build_seeded, distilled_cfg, make_batch, monkeypatch, main
):
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: main)
    kept = []
    with EventStorage(19) as storage:
        storage.put_histogram = lambda name, weights: kept.append(name)
        build_seeded(distilled_cfg("RetinaNet"), 0).train()(make_batch())
    assert kept == ["aid/weight"] * main


def hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


@pytest.mark.parametrize("detector", FAMILIES)
def test_a_step_leaves_nothing_behind(build_seeded, distilled_cfg, make_batch, detector):
    model = build_seeded(distilled_cfg(detector), 0)
    maps = []

    def watch(module, inputs, output):
        maps.extend(weakref.ref(x) for x in output.values())

    for backbone in (model.student.backbone, model.teacher.model.backbone):
        backbone.register_forward_hook(watch)
    count = hooks(model)
    step(model, make_batch())
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    losses = step(model, make_batch())
    assert len(maps) == 4 * 5
    sum(losses.values()).backward()
    del losses
    gc.collect()
    assert [x for x in maps if x() is not None] == []
    assert hooks(model) == count
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes


def test_nothing_survives_a_failed_step(build_seeded, distilled_cfg, make_batch, monkeypatch):
    model = build_seeded(distilled_cfg("RetinaNet"), 0)
    seen = []

    def fail(*args):
        seen.append(hooks(model))
        raise RuntimeError("no losses today")

    monkeypatch.setattr(model.student, "losses", fail)
    with pytest.raises(RuntimeError, match="no losses today"):
        step(model, make_batch())
    assert seen[0] > 0 and hooks(model) == 0
    assert "label_anchors" not in vars(model.student)


# --- unlike detectors


@pytest.mark.parametrize("student,teacher", [FAMILIES, FAMILIES[::-1]])
def test_mixed_pairs_share_the_levels_that_mean_the_same(build_seeded, small_cfg, student, teacher):
    detectors = [wrap(build_seeded(small_cfg(f), 0)) for f in (student, teacher)]
    assert [pair.stride for pair in pair_levels(*detectors)] == [8, 16, 32]


@pytest.mark.parametrize("detector,strides", [("RetinaNet", 8), ("FasterRCNN", 4)])
def test_equal_pairs_share_five_levels(build_seeded, small_cfg, detector, strides):
    own = wrap(build_seeded(small_cfg(detector), 0))
    other = wrap(build_seeded(small_cfg(detector, WIDE), 0))
    pairs = pair_levels(own, other)
    assert [pair.stride for pair in pairs] == [strides * 2**i for i in range(5)]
    assert {(p.student_channels, p.teacher_channels) for p in pairs} == {(16, 24)}


def test_maps_of_different_padding_are_cropped_to_the_common_cells(
    build_seeded, distilled_cfg, make_batch
):
    """A teacher that pads more sees the same image in the same corner."""
    model = build_seeded(distilled_cfg("RetinaNet", {"DISTILL.AID.ENABLED": True}), 0)
    seen = []
    model.distiller["NonLocal"].register_forward_pre_hook(lambda _, args: seen.append(args))
    batch = make_batch(size=(96, 100))
    model.teacher.model.backbone._size_divisibility = 128
    step(model, batch)
    student, teacher, weights = seen[0]
    for stride, x in student.features.items():
        height, width = -(-96 // stride), -(-128 // stride)
        assert x.shape[-2:] == teacher.features[stride].shape[-2:] == (height, width)
        assert weights.maps[stride].shape == (2, 1, height, width)
        assert x.dtype == teacher.features[stride].dtype == torch.float32
    whole = model.teacher.observe(batch, "BGR", False).features
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
    teacher = model.teacher.observe(batch, "BGR", False).features
    with torch.no_grad():
        student = model.student.backbone(model.student.preprocess_image(batch).tensor)
    for (stride, x), y in zip(teacher.items(), student.values()):
        # The stem adds its channels up in another order.
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * y.abs().max().item())
    assert torch.equal(batch[0]["image"], image)


@pytest.mark.parametrize(
    "changes,shared",
    [
        ({}, True),
        ({"MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0]}, False),
        ({"MODEL.PIXEL_STD": [2.0, 2.0, 2.0]}, False),
        ({"INPUT.FORMAT": "RGB"}, False),
    ],
    ids=str,
)
def test_images_are_prepared_once_where_teacher_and_student_prepare_them_alike(
    build_seeded, distilled_cfg, make_batch, monkeypatch, changes, shared
):
    cfg = distilled_cfg("RetinaNet", changes)
    model, batch = build_seeded(cfg, 0), make_batch()
    teacher, seen, calls = model.teacher.model, [], []
    channels_of_teacher = [cfg.INPUT.FORMAT.index(x) for x in "BGR"]
    in_its_order = [{**x, "image": x["image"][channels_of_teacher]} for x in batch]
    expected = teacher.preprocess_image(in_its_order).tensor
    prepare = teacher.preprocess_image
    monkeypatch.setattr(teacher, "preprocess_image", lambda x: calls.append(x) or prepare(x))
    teacher.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step(model, batch)
    assert len(calls) == (not shared)
    assert len(seen) == 1 and torch.equal(seen[0], expected)


def test_images_of_a_detector_that_prepares_its_own_are_not_shared(build_seeded, distilled_cfg):
    model = build_seeded(distilled_cfg("RetinaNet"), 0)
    assert model.teacher.prepares_images_like(model.student, "BGR")

    class Scaled(RetinaNet):
        def preprocess_image(self, batched_inputs):
            return super().preprocess_image(batched_inputs)

    model.student.__class__ = Scaled
    assert not model.teacher.prepares_images_like(model.student, "BGR")


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
            outputs = model.teacher.observe(make_batch(), "BGR", True)
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
def test_classes_in_another_order_are_told(distilled_cfg, build_seeded, caplog, aid):
    """Where they are compared; and a data set that nothing is known of is left alone."""
    cfg = distilled_cfg("RetinaNet", {"DISTILL.AID.ENABLED": aid})
    model = build_seeded(cfg, 0)
    orders = {"told_ours": ["car", "van", "truck"], "told_theirs": ["van", "car", "truck"]}
    for name, classes in orders.items():
        MetadataCatalog.get(name).thing_classes = classes
    model.teacher.datasets = ("told_ours", "told_unknown")
    check_classes(model, ("told_ours",))
    assert "The teacher's data set" not in caplog.text
    model.teacher.datasets = ("told_theirs",)
    check_classes(model, ("told_ours",))
    assert ("'told_theirs' has the classes ['van', 'car'" in caplog.text) == aid


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


# --- gradients of the adapters


@pytest.mark.parametrize("counts", [(2, 1), (0, 0), (0, 2)], ids=str)
@pytest.mark.parametrize("warmup", [0, 100])
@pytest.mark.parametrize("detector", FAMILIES)
def test_every_parameter_has_a_gradient_in_each_step(
    build_seeded, distilled_cfg, wide_teachers, make_batch, detector, warmup, counts
):
    """Else DDP waits for it for ever."""
    changes = {**wide_teachers[detector], "DISTILL.WARMUP_ITERS": warmup}
    model = build_seeded(distilled_cfg(detector, changes), 0)
    losses, grads = losses_and_gradients(model, make_batch(counts))
    expected = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(grads) == expected
    adapters = torch.cat([g.flatten() for n, g in grads.items() if n.startswith("distiller.")])
    assert adapters.isfinite().all()
    assert (adapters == 0).all() == (warmup > 0)
    assert all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("size", [(33, 40), (64, 300)])
def test_images_of_unusual_size(build_seeded, distilled_cfg, make_batch, size, images):
    batch = make_batch((1,) * images, size=size)
    for record in batch:
        record["instances"].gt_boxes.tensor[:] = torch.tensor([3.0, 4, 30, 31])
    losses = step(build_seeded(distilled_cfg("RetinaNet"), 0), batch)
    assert all(loss.isfinite() for loss in losses.values())


# --- mixed precision


@pytest.mark.parametrize(
    "detector,granularity", [*(("RetinaNet", g) for g in GRANULARITIES), ("FasterRCNN", "instance")]
)
def test_autocast(build_seeded, distilled_cfg, make_batch, detector, granularity):
    """With PRECISION float32 distillation is float32, on maps of bfloat16 too, and near to the losses
    in full precision.
    """
    adapted = []
    model = build_seeded(distilled_cfg(detector, {"DISTILL.AID.GRANULARITY": granularity}), 0)
    full = step(model, make_batch())
    dtypes = []
    model.student.backbone.register_forward_hook(
        lambda _, __, output: dtypes.extend(x.dtype for x in output.values())
    )
    for module in model.distiller.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(lambda _, __, output: adapted.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = step(model, make_batch())
    assert torch.bfloat16 in dtypes
    assert set(adapted) == {torch.float32}
    for name in KD_LOSSES:
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(full[name].item(), rel=0.2)
    sum(losses.values()).backward()
    assert all(g.isfinite().all() for g in gradients(model).values())


# --- errors


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("DISTILL.STUDENT", "RetinNet", "DISTILL.STUDENT 'RetinNet'.*RetinaNet"),
        ("DISTILL.STUDENT", "DistilledDetector", "DISTILL.STUDENT 'DistilledDetector'"),
        ("DISTILL.STUDENT", "", "DISTILL.STUDENT ''.*META_ARCHITECTURE"),
        ("DISTILL.METHODS", ["Attention"], "DISTILL.METHODS.*Attention.*AttentionGuided.*NonLocal"),
        ("DISTILL.METHODS", [], "DISTILL.METHODS.*AttentionGuided.*DISTILL.ENABLED"),
        ("DISTILL.AID.GRANULARITY", "pixel", "DISTILL.AID.GRANULARITY.*pixel.*instance"),
        ("DISTILL.AID.NORMALIZER", "none", "DISTILL.AID.NORMALIZER.*none.*per_level"),
        ("DISTILL.AID.ALPHA", -0.1, "DISTILL.AID.ALPHA.*-0.1.*0 or more"),
        ("DISTILL.AID.ALPHA", float("nan"), "DISTILL.AID.ALPHA.*nan"),
        ("DISTILL.AID.ALPHA", float("inf"), "DISTILL.AID.ALPHA.*inf"),
        ("DISTILL.WEIGHT", -1.0, "DISTILL.WEIGHT.*-1.0"),
        ("DISTILL.WARMUP_ITERS", -5, "DISTILL.WARMUP_ITERS.*-5"),
    ],
)
def test_wrong_keys_are_named(build_seeded, distilled_cfg, key, value, message):
    cfg = distilled_cfg("RetinaNet")
    node, name = cfg, key.split(".")
    for part in name[:-1]:
        node = node[part]
    node[name[-1]] = value
    with pytest.raises(ValueError, match=message):
        build_seeded(cfg, 0)


def test_constructed_without_a_teacher_it_is_the_student(small_cfg, build_seeded):
    student = build_seeded(small_cfg("RetinaNet"), 0)
    model = DistilledDetector(student=student)
    assert model.teacher is None and list(model.distiller) == []


def test_constructed_by_hand_it_distils(small_cfg, build_seeded, make_batch):
    """A distiller of one's own needs no config: L1 of the finest maps, weighted by AID's weights."""

    class L1(Distiller):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, student, teacher, weights):
            s, t = student.features[8], teacher.features[8]
            return {"mean": (weights.maps[8] * (s - t)).abs().mean()}

    student, detector = (build_seeded(small_cfg("RetinaNet"), seed) for seed in (0, 1))
    teacher = Teacher(detector, "BGR")
    model = DistilledDetector(
        student=student,
        teacher=teacher,
        distillers={"L1": L1()},
        pairs=pair_levels(wrap(student), teacher.wrapper),
        weigh=partial(aid_weights, alpha=0.0, granularity="instance"),
        weight=2.0,
    )
    batch = make_batch()
    losses = step(model, batch)
    with torch.no_grad():
        maps = [m.backbone(m.preprocess_image(batch).tensor)["p3"] for m in (student, detector)]
    expected = 2 * (maps[0] - maps[1]).abs().double().mean().item()
    assert losses["loss_L1_mean"].item() == pytest.approx(expected, rel=1e-5)


def test_ignore_regions_reach_the_teacher(
    build_seeded, distilled_cfg, make_batch, with_ignore_region
):
    """An instance of class -1 is no object: it lowers the background's loss and crashes nothing."""
    model = build_seeded(distilled_cfg("RetinaNet"), 0)
    mask_ignore_regions(model)
    batch = make_batch((1, 1))
    seen = []
    weigh = model.weigh
    model.weigh = lambda losses, **kwargs: seen.append(losses) or weigh(losses, **kwargs)
    step(model, batch)
    with_ignore_region(batch, [0.0, 0, 96, 64])
    step(model, batch)
    assert seen[0].objects.counts == seen[1].objects.counts == [1, 1]
    assert (seen[1].background < seen[0].background).any()
    assert (seen[1].background <= seen[0].background).all()
