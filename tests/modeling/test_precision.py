"""The teacher's cheap forward pass says what the exact one says."""

import pytest
import torch
from torch import nn

from aid_d2.modeling import precision
from aid_d2.modeling.precision import (
    choose_precision,
    compile_backbone,
    fold_norms,
    warn_emulated_bfloat16,
)
from aid_d2.modeling.teacher import Teacher
from aid_d2.modeling.wrappers import wrap
from aid_d2.structures import Objects
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import EventStorage

FAMILIES = ("RetinaNet", "FCOS", "GFL", "FasterRCNN")
CPU = torch.device("cpu")


def detector(small_cfg, build_seeded, wrapper, norm="FrozenBN"):
    """In eval mode, its norms as after training."""
    model = build_seeded(small_cfg(wrapper, {"MODEL.RESNETS.NORM": norm}), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            for x, low, high in (
                (layer.running_mean, -1.0, 1.0),
                (layer.running_var, 0.5, 2.0),
                (layer.weight.data, 0.2, 0.5),
                (layer.bias.data, -0.5, 0.5),
            ):
                x.copy_(low + (high - low) * torch.rand(x.shape, generator=generator))
    return model


def observe(model, batch, precision):
    teacher = Teacher(model, "BGR")
    teacher.speed_up(precision)
    return teacher.wrapper.forward_features(batch, "BGR", with_head=True)


def maps_of(outputs):
    return [*outputs.features.values(), *(x for y in outputs.head_outputs for x in y)]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("wrapper", FAMILIES)
def test_folding_changes_rounding_alone(small_cfg, build_seeded, make_batch, wrapper, norm):
    model = detector(small_cfg, build_seeded, wrapper, norm).double()
    model.pixel_mean, model.pixel_std = model.pixel_mean.double(), model.pixel_std.double()
    images = model.preprocess_image(make_batch()).tensor
    with torch.no_grad():
        before = model.backbone(images)
        fold_norms(model)
        after = model.backbone(images)
    assert not any(isinstance(x, (FrozenBatchNorm2d, nn.BatchNorm2d)) for x in model.modules())
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wrapper", FAMILIES)
def test_bfloat16_is_near(small_cfg, build_seeded, make_batch, wrapper):
    batch = make_batch()
    exact, fast = (
        maps_of(observe(detector(small_cfg, build_seeded, wrapper), batch, dtype))
        for dtype in ("float32", "bfloat16")
    )
    for x, y in zip(exact, fast):
        # Eight bits of a mantissa are half a percent.
        assert 0 < (x - y.float()).norm() < 0.03 * x.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_box_head_is_as_precise_as_the_maps(small_cfg, build_seeded, make_batch, dtype):
    model, batch = detector(small_cfg, build_seeded, "FasterRCNN"), make_batch((5, 3))
    objects = Objects.from_inputs(batch, CPU)
    exact = observe(model, batch, "float32")
    maps = {stride: x.to(dtype) for stride, x in exact.features.items()}
    dtypes = []
    model.roi_heads.box_head.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    wrapper = wrap(model)
    with torch.no_grad():
        logits, deltas = wrapper.score(maps, objects.boxes.split(objects.counts))
        pooled = model.roi_heads.box_pooler(
            [exact.features[s] for s in (4, 8, 16, 32)], [x["instances"].gt_boxes for x in batch]
        )
        expected = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    assert dtypes == [dtype, torch.float32]
    for x, y in zip((logits, deltas), expected):
        assert x.dtype == torch.float32
        assert (x - y).norm() <= (0.03 if dtype is torch.bfloat16 else 1e-6) * y.norm()


def test_float32_is_exact(small_cfg, build_seeded, make_batch):
    model, batch = detector(small_cfg, build_seeded, "RetinaNet"), make_batch()
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(batch).tensor)
        expected = model.head([features[name] for name in model.head_in_features])
    outputs = observe(model, batch, "float32")
    for x, y in zip(expected, outputs.head_outputs):
        assert all(map(torch.equal, x, y))


@pytest.mark.parametrize(
    "capabilities,expected",
    [({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"bf16": True}, True)],
)
def test_what_a_cpu_can_do_is_asked_of_torch(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision.has_bfloat16(CPU) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: expected, raising=False)
    assert precision.has_bfloat16(CPU) == expected


@pytest.mark.parametrize("available", [True, False])
def test_auto_takes_bfloat16_where_it_is_fast(monkeypatch, available):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: available)
    assert choose_precision("auto", CPU) == (torch.bfloat16 if available else torch.float32)
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize("available", [True, False])
def test_training_in_emulated_bfloat16_is_told(monkeypatch, caplog, available):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: available)
    warn_emulated_bfloat16(CPU)
    told = ["SOLVER.BF16" in record.message for record in caplog.records]
    assert told == [True] * (not available)


@pytest.mark.parametrize("detector", FAMILIES)
def test_a_step_with_a_fast_teacher(distilled_cfg, build_seeded, make_batch, detector):
    """Near the step with the exact one; nothing of the teacher is in half precision by then."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        changes = {
            "DISTILL.PRECISION": dtype,
            "DISTILL.METHODS": ("AttentionGuided", "PKD", "BCKD"),
            "DISTILL.INHERIT": True,
        }
        model = build_seeded(distilled_cfg(detector, changes), seed=0).train()
        torch.manual_seed(0)
        with EventStorage(0):
            losses[dtype] = model(make_batch())
        sum(losses[dtype].values()).backward()
        assert all(x.dtype == torch.float32 and x.isfinite() for x in losses[dtype].values())
    for name, exact in losses["float32"].items():
        assert losses["bfloat16"][name].item() == pytest.approx(exact.item(), rel=0.1, abs=1e-3)


def test_deformable_convolutions_stay_float32(small_cfg, build_seeded, monkeypatch):
    """Detectron2's compute in nothing less."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    changes = {
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, True],
    }
    teacher = Teacher(build_seeded(small_cfg("RetinaNet", changes), 0), "BGR")
    teacher.speed_up("auto")
    assert teacher.wrapper.dtype is torch.float32
    with pytest.raises(ValueError, match="PRECISION is bfloat16.*deformable"):
        teacher.speed_up("bfloat16")


def test_an_unknown_precision_is_named(distilled_cfg, build_seeded):
    with pytest.raises(ValueError, match="DISTILL.PRECISION is 'float16'; choose one of"):
        build_seeded(distilled_cfg("RetinaNet", {"DISTILL.PRECISION": "float16"}), seed=0)


def test_a_compiled_bottom_up_network_trains(distilled_cfg, build_seeded, make_batch, monkeypatch):
    """A stand-in for the compiler, so that none is needed, is asked, and its result is used."""
    compiled = []

    def compile(function, *args, **kwargs):
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    batch, losses = make_batch(), []
    for wanted in (False, True):
        cfg = distilled_cfg("RetinaNet", {"DISTILL.TEACHER.COMPILE": wanted})
        model = build_seeded(cfg, seed=0).train()
        if wanted:
            compile_backbone(model.student)
        with EventStorage(0):
            losses.append(model(batch))
    assert len(compiled) == 2
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(x, losses[1][name]) for name, x in losses[0].items())


def test_a_backbone_without_a_part_to_compile_is_named(small_cfg, build_seeded):
    model = build_seeded(small_cfg("RetinaNet"), seed=0)
    model.backbone = model.backbone.bottom_up
    with pytest.raises(ValueError, match="bottom_up.*ResNet of a RetinaNet"):
        compile_backbone(model)
