"""Dist2: detection imitation against the detectors' own losses, feature imitation against NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.detectors import features_of, wrapper_without_backbone
from helpers.toy import as_batch, build, maps, rand, random_weights
from torch import nn

from aid_d2.distillers.dist2 import Dist2, detection_loss
from aid_d2.layers.matching import counted_anchors
from aid_d2.layers.prediction_losses import mimic_losses
from aid_d2.modeling.context import DistillContext, pair_levels
from aid_d2.structures import (
    Call,
    DetectorOutputs,
    DistillWeights,
    LevelPair,
    LevelShape,
    Objects,
    UnreducedLosses,
)
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

FAMILIES = ("RetinaNet", "FCOS", "GFL", "FasterRCNN")
CLS_WEIGHTS = {"RetinaNet": 1.0, "FCOS": 0.4, "GFL": 1.0, "FasterRCNN": 1.0}
BOX_WEIGHTS = {"RetinaNet": 1.0, "FCOS": 0.75, "GFL": 4.0, "FasterRCNN": 1.0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detector_of(small_cfg, build_seeded):
    """`detector_of(name, seed, width, changes)`: a detector; its RPN draws every anchor."""

    def make(name, seed=0, width=16, **changes):
        if name == "FasterRCNN":
            changes = {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000, **changes}
        cfg = small_cfg(name, {"MODEL.FPN.OUT_CHANNELS": width, **changes})
        return wrapper_without_backbone(cfg, build_seeded, seed)

    return make


def batch(counts=(2, 1)):
    boxes = torch.tensor([[8.0, 8, 40, 40], [30, 4, 90, 60]])
    classes = torch.tensor([0, 2])
    return [Instances((72, 96), gt_boxes=Boxes(boxes[:n]), gt_classes=classes[:n]) for n in counts]


def observe(detector, width, seed, counts=(2, 1)):
    return DetectorOutputs(features_of(detector, width, seed, len(counts)))


def objects_of(counts=(2, 1)):
    return Objects.from_inputs([{"instances": x} for x in batch(counts)], CPU)


def detection_imitation(student, teacher, **changes):
    """The method without feature imitation."""
    teacher.model.requires_grad_(False)
    node = Dist2.config()
    node.IMITATION = ()
    for key, value in changes.items():
        setattr(node, key, value)
    return Dist2(node, pair_levels(student, teacher))


def full(features, weight=1.0):
    return DistillWeights({s: torch.full_like(x[:, :1], weight) for s, x in features.items()})


# --- detection imitation


def synthetic_losses(roi, seed=1):
    """Two images of 2x3 locations with 2 anchors, and 2 + 1 objects if there is a second stage."""
    values = [rand(2, 12, seed=seed + i).abs() for i in range(3)]
    counts = [2, 1] if roi else [0, 0]
    low = 10 * rand(sum(counts), 2, seed=7).abs()
    return UnreducedLosses(
        levels=[LevelShape(8, 2, 3, 2)],
        cls=values[0],
        box=values[1],
        matched_idxs=torch.full((2, 12), -1),
        factor=values[2],
        image_normalizer=torch.ones(2),
        batch_normalizer=torch.tensor(5.0),
        background=torch.zeros(2, 1),
        objects=Objects(torch.cat([low, low + 6], 1), torch.zeros(sum(counts)), counts, []),
        roi=rand(sum(counts), seed=9).abs() if roi is not None else None,
    )


@pytest.mark.parametrize("roi", [None, False, True], ids=["one-stage", "no-objects", "two-stage"])
def test_detection_loss_against_its_formula(roi):
    losses = synthetic_losses(roi)
    weight = rand(2, 1, 2, 3, seed=4).sigmoid()
    weights = DistillWeights({8: weight})
    expected = 0.0
    for image, anchor in np.ndindex(2, 12):
        loss = (losses.cls + losses.box)[image, anchor].item()
        w = weight[image, 0].flatten()[anchor // 2].item()
        expected += w * losses.factor[image, anchor].item() * loss / 5
    if roi:
        of_objects = weights.per_box(losses.objects.boxes.split([2, 1]))
        assert len(set(of_objects.tolist())) == 3
        expected += sum((of_objects * losses.roi).tolist()) / 3
    assert detection_loss(losses, weights).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("roi", [None, True])
def test_full_weight_is_bit_equal_to_the_loss_without(roi):
    losses = synthetic_losses(roi)
    expected = (losses.factor * (losses.cls + losses.box)).sum() / losses.batch_normalizer
    if roi:
        expected = expected + losses.roi.sum() / 3
    weights = DistillWeights({8: torch.ones(2, 1, 2, 3, dtype=torch.float64)})
    assert torch.equal(detection_loss(losses, weights), expected)


def own_loss(name, wrapper, features, instances):
    """What the detector itself would train on, on these maps."""
    model, maps = wrapper.model, list(features.values())
    head_outputs = wrapper.head(maps)
    with EventStorage():
        if name == "FasterRCNN":
            return rpn_loss(model, maps, head_outputs, instances) + roi_loss(model, maps, instances)
        if name != "GFL":
            # Where the running mean settles.
            predictions = wrapper.predictions(features, head_outputs)
            matched_idxs = wrapper.matched_idxs(
                predictions, Objects.from_inputs([{"instances": x} for x in instances], CPU)
            )
            model.loss_normalizer = max(int((matched_idxs >= 0).sum()), 1)
        images = ImageList(torch.zeros(len(instances), 3, 64, 96), [(64, 96)] * len(instances))
        return sum(model.forward_training(images, maps, head_outputs, instances).values())


def rpn_loss(model, maps, head_outputs, instances):
    rpn = model.proposal_generator
    anchors = rpn.anchor_generator(maps)
    logits, deltas = head_outputs
    labels, boxes = rpn.label_and_sample_anchors(anchors, instances)
    logits = [permute_to_N_HWA_K(x, 1).squeeze(-1) for x in logits]
    deltas = [permute_to_N_HWA_K(x, 4) for x in deltas]
    return sum(rpn.losses(anchors, logits, labels, deltas, boxes).values())


def roi_loss(model, maps, instances):
    heads = model.roi_heads
    boxes = [x.gt_boxes for x in instances]
    head_outputs = heads.box_predictor(heads.box_head(heads.box_pooler(maps[:4], boxes)))
    for x in instances:
        x.proposal_boxes = x.gt_boxes
    return sum(heads.box_predictor.losses(head_outputs, instances).values())


def gradients(loss, features):
    return torch.autograd.grad(loss, list(features.values()), allow_unused=True)


@pytest.mark.parametrize("counts", [(2, 1), (0, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_di_is_the_teachers_own_loss_on_the_students_maps(detector_of, name, counts):
    """And so is its gradient."""
    student, teacher = detector_of(name, 0), detector_of(name, 50)
    method = detection_imitation(student, teacher)
    seen = observe(student, 16, 1, counts)
    for x in seen.features.values():
        x.requires_grad_()
    loss = method(
        as_batch(seen, observe(teacher, 16, 2, counts), full(seen.features), objects_of(counts))
    )["di"]
    expected = own_loss(name, teacher, seen.features, batch(counts))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    for actual, wanted in zip(gradients(loss, seen.features), gradients(expected, seen.features)):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())
    assert not list(method.parameters())


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "FasterRCNN"])
def test_gradient_of_di_against_finite_differences(detector_of, name):
    """Along the gradient. GFL's loss has weights without gradient: see the test above."""
    teacher = detector_of(name, 50)
    method = detection_imitation(detector_of(name, 0), teacher)
    seen, theirs = observe(teacher, 16, 1), observe(teacher, 16, 2)
    weights = DistillWeights(
        {s: rand(*x[:, :1].shape).sigmoid().float() for s, x in seen.features.items()}
    )

    def loss(features):
        return method(as_batch(features, theirs, weights, objects_of()))["di"]

    leaves = {s: x.clone().requires_grad_() for s, x in seen.features.items()}
    gradient = dict(zip(leaves, gradients(loss(leaves), leaves)))
    norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
    step = 0.02
    up, down = (
        loss({s: x + sign * step * gradient[s] / norm for s, x in seen.features.items()}).item()
        for sign in (1, -1)
    )
    assert (up - down) / (2 * step) == pytest.approx(norm.item(), rel=0.02)


def test_no_running_mean_takes_part(detector_of):
    teacher = detector_of("RetinaNet", 50)
    method = detection_imitation(detector_of("RetinaNet", 0), teacher)
    seen = observe(teacher, 16, 1)
    teacher.model.loss_normalizer = 77.0
    before = {k: x.clone() for k, x in teacher.model.state_dict().items()}
    first, second = (
        method(as_batch(seen, seen, full(seen.features), objects_of()))["di"] for _ in range(2)
    )
    assert torch.equal(first, second) and teacher.model.loss_normalizer == 77.0
    assert all(torch.equal(x, before[k]) for k, x in teacher.model.state_dict().items())


@pytest.mark.parametrize("target", ["ground_truth", "teacher"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_reaches_adapters_and_student_but_not_the_teacher(detector_of, name, target):
    student, teacher = detector_of(name, 0, width=16), detector_of(name, 50, width=24)
    method = detection_imitation(student, teacher, DI_TARGET=target)
    seen = observe(student, 16, 1, (2, 0))
    for x in seen.features.values():
        x.requires_grad_()
    loss = method(
        as_batch(seen, observe(teacher, 24, 2, (2, 0)), full(seen.features), objects_of((2, 0)))
    )["di"]
    loss.backward()
    assert len(list(method.parameters())) == 10
    for x in [*seen.features.values(), *method.parameters()]:
        assert x.grad.isfinite().all() and x.grad.any()
    assert all(p.grad is None for p in teacher.model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_di_with_the_teacher_as_target(detector_of, name):
    student, teacher = detector_of(name, 0), detector_of(name, 50)
    method = detection_imitation(student, teacher, DI_TARGET="teacher")
    seen, theirs = observe(student, 16, 1), observe(teacher, 16, 2)
    weights = DistillWeights({s: x.float() for s, x in random_weights(seen.features).maps.items()})
    loss = method(as_batch(seen, theirs, weights, objects_of()))["di"]
    predicted, target = (
        teacher.predictions(x.features, teacher.head(list(x.features.values())))
        for x in (seen, theirs)
    )
    matched_idxs = teacher.matched_idxs(predicted, objects_of())
    cls, box = mimic_losses(
        predicted,
        target,
        weights.per_anchor(target.levels),
        matched_idxs,
        counted_anchors(matched_idxs, target.anchors, objects_of()),
        teacher.box_distance(predicted, target),
        by_confidence=name == "GFL",
    )
    assert (matched_idxs >= 0).any()
    expected = CLS_WEIGHTS[name] * cls + BOX_WEIGHTS[name] * box
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    theirs.head_outputs = teacher.head(list(theirs.features.values()))
    assert torch.equal(method(as_batch(seen, theirs, weights, objects_of()))["di"], loss)
    same = DetectorOutputs(theirs.features)
    assert method(as_batch(same, theirs, weights, objects_of()))["di"] < 1e-6 * loss


@pytest.mark.parametrize("target", ["ground_truth", "teacher"])
def test_student_of_another_kind(detector_of, target):
    student, teacher = detector_of("FCOS", 0), detector_of("GFL", 50)
    method = detection_imitation(student, teacher, DI_TARGET=target)
    seen = observe(student, 16, 1)
    loss = method(as_batch(seen, observe(teacher, 16, 2), full(seen.features), objects_of()))["di"]
    assert loss.isfinite() and loss > 0


@pytest.mark.parametrize("target", ["ground_truth", "teacher"])
@pytest.mark.parametrize("name", FAMILIES)
def test_constant_weight_scales_di(detector_of, name, target):
    method = detection_imitation(detector_of(name, 0), detector_of(name, 50), DI_TARGET=target)
    seen, theirs = (observe(method.teacher, 16, seed) for seed in (1, 2))
    whole = method(as_batch(seen, theirs, full(seen.features), objects_of()))["di"]
    part = method(as_batch(seen, theirs, full(seen.features, 0.3), objects_of()))["di"]
    assert part.item() == pytest.approx(0.3 * whole.item(), rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 65504.0])
@pytest.mark.parametrize("target", ["ground_truth", "teacher"])
@pytest.mark.parametrize("name", FAMILIES)
def test_extreme_maps_have_a_finite_di(detector_of, name, target, scale):
    method = detection_imitation(detector_of(name, 0), detector_of(name, 50), DI_TARGET=target)
    seen, theirs = (observe(method.teacher, 16, seed) for seed in (1, 2))
    seen.features = {s: (scale * x).requires_grad_() for s, x in seen.features.items()}
    loss = method(as_batch(seen, theirs, full(theirs.features), objects_of()))["di"]
    assert loss.isfinite()
    assert all(x.isfinite().all() for x in gradients(loss, seen.features))


# --- feature imitation


class BottomUp(nn.Module):
    """Shapes of the maps res3 to res5 of a backbone."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def output_shape(self):
        return {
            f"res{i}": ShapeSpec(channels=c, stride=2**i) for i, c in enumerate(self.channels, 3)
        }


def detector(bottom_up):
    backbone = SimpleNamespace(**({"bottom_up": BottomUp(bottom_up)} if bottom_up else {}))
    return SimpleNamespace(
        model=SimpleNamespace(backbone=backbone), levels=[1, 2, 3], num_classes=3
    )


def toy_setting(student=(2, 3, 5), teacher=(2, 4, 5), necks=(4, 6), strides=(8, 16, 64)):
    """Pyramids at strides 8, 16 and 64; backbones at 8, 16 and 32."""
    pairs = [LevelPair(s, *necks, i) for i, s in enumerate(strides)]
    return DistillContext(detector(student), detector(teacher), pairs)


SIZES = {8: (5, 6), 16: (3, 3), 64: (1, 1)}


def toy_outputs(wrapper, neck, seed, padding=0, dtype=torch.float32):
    """The maps of the backbone are larger by the padding."""
    bottom_up = wrapper.model.backbone.bottom_up
    output = {}
    for name, shape in bottom_up.output_shape().items():
        height, width = SIZES.get(shape.stride, (2, 2))
        x = rand(2, shape.channels, height, width, seed=seed + shape.stride)
        output[name] = torch.nn.functional.pad(x, (0, padding, 0, padding), value=9.0).to(dtype)
    features = {s: x.float() for s, x in maps(SIZES, neck, seed=seed + 50).items()}
    return DetectorOutputs(features, calls={bottom_up: [Call((), output)]})


def map_of(kind, outputs, stride, wrapper):
    if kind == "N":
        return outputs.features[stride].numpy()
    (call,) = outputs.calls[wrapper.model.backbone.bottom_up]
    height, width = SIZES[stride]
    name = {8: "res3", 16: "res4", 32: "res5"}[stride]
    return call.output[name][..., :height, :width].float().numpy()


def feature_imitation(context, *strategies, **changes):
    return build(Dist2, context, DI_WEIGHT=0.0, IMITATION=strategies, **changes).float()


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize(
    "imitation",
    [("B2B",), ("N2N",), ("N2B",), ("B2N",), ("N2N", "B2N"), ("All2All",)],
    ids=str,
)
def test_fi_against_numpy(imitation, padding):
    context = toy_setting()
    method = feature_imitation(context, *imitation, FI_WEIGHT=1.5)
    for i, p in enumerate(method.parameters()):
        p.data.copy_(rand(*p.shape, seed=i) / 2)
    student = toy_outputs(context.student, 4, 1, padding)
    teacher = toy_outputs(context.teacher, 6, 200, padding)
    weights = DistillWeights(
        {s: x.float() for s, x in random_weights(student.features).maps.items()}
    )
    losses = method(as_batch(student, teacher, weights))
    strategies = ("B2B", "N2N", "N2B", "B2N") if imitation == ("All2All",) else imitation
    expected = 0.0
    for strategy in strategies:
        # Backbones have no stride 64.
        for stride in (8, 16, 64) if strategy == "N2N" else (8, 16):
            conv = method.transforms[strategy][stride]
            kernel, bias = (p.detach().numpy() for p in (conv.weight, conv.bias))
            s = map_of(strategy[0], student, stride, context.student)
            t = map_of(strategy[2], teacher, stride, context.teacher)
            s = np.einsum("oc,nchw->nohw", kernel[:, :, 0, 0], s) + bias[:, None, None]
            expected += (weights.maps[stride].numpy() * (s - t) ** 2).mean()
    assert set(losses) == {"fi"}
    assert losses["fi"].item() == pytest.approx(1.5 * expected, rel=1e-5)


def test_only_the_backbones_that_are_compared_are_recorded():
    context = toy_setting()
    student, teacher = (x.model.backbone.bottom_up for x in (context.student, context.teacher))
    for strategy, expected in (
        ("B2B", ([student], [teacher])),
        ("N2N", ([], [])),
        ("N2B", ([], [teacher])),
        ("B2N", ([student], [])),
    ):
        method = feature_imitation(context, strategy)
        recorded = [
            method.recorded_modules(getattr(context, side), side) for side in ("student", "teacher")
        ]
        assert recorded == list(expected)


def test_a_student_equal_to_its_teacher_has_no_feature_loss():
    context = toy_setting(teacher=(2, 3, 5), necks=(4, 4))
    method = feature_imitation(context, "B2B", "N2N")
    student = toy_outputs(context.student, 4, 1)
    teacher = toy_outputs(context.teacher, 4, 1)
    loss = method(as_batch(student, teacher, full(student.features)))["fi"]
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in method.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_backbones_in_half_precision(dtype):
    context = toy_setting()
    method = feature_imitation(context, "All2All")
    single, half = (
        method(
            as_batch(
                toy_outputs(context.student, 4, 1, dtype=x),
                toy_outputs(context.teacher, 6, 200, dtype=x),
                full({s: torch.ones(2, 1, *size) for s, size in SIZES.items()}),
            )
        )["fi"]
        for x in (torch.float32, dtype)
    )
    half.backward()
    assert half.dtype == torch.float32 and half.item() == pytest.approx(single.item(), rel=0.01)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in method.parameters())


@pytest.mark.parametrize("weight", [0.3, 1e-3])
def test_constant_weight_scales_fi(weight):
    context = toy_setting()
    method = feature_imitation(context, "All2All")
    student, teacher = (
        toy_outputs(context.student, 4, 1),
        toy_outputs(context.teacher, 6, 9),
    )
    whole, part = (
        method(as_batch(student, teacher, full(student.features, w)))["fi"].item()
        for w in (1.0, weight)
    )
    assert part == pytest.approx(weight * whole, rel=1e-5)


# --- keys


def test_defaults():
    node = Dist2.config()
    assert (node.DI_WEIGHT, node.FI_WEIGHT) == (1.0, 1.0)
    assert (node.DI_TARGET, node.IMITATION) == ("ground_truth", ("All2All",))


@pytest.mark.parametrize("imitation", [("B2C",), "B2B", ("N2N", "all")])
def test_unknown_strategies_are_named(imitation):
    with pytest.raises(ValueError, match="DISTILL.DIST2.IMITATION is .*All2All"):
        build(Dist2, toy_setting(), DI_WEIGHT=0.0, IMITATION=imitation)


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="DI_WEIGHT is 0 and IMITATION is empty"):
        build(Dist2, toy_setting(), DI_WEIGHT=0.0, IMITATION=())


@pytest.mark.parametrize(
    "student,teacher,who,works",
    [
        (None, (2, 3, 5), "student", r"\['N2N', 'N2B'\]"),
        ((2, 3, 5), None, "teacher", r"\['N2N', 'B2N'\]"),
        (None, None, "student and teacher", r"\['N2N'\]"),
    ],
)
def test_backbones_without_bottom_up_leave_some_strategies(student, teacher, who, works):
    context = toy_setting(student, teacher)
    with pytest.raises(ValueError, match=f"backbone of the {who} has no .* among {works}"):
        feature_imitation(context, "All2All")
    feature_imitation(context, "N2N")


def test_a_strategy_without_common_strides_is_named():
    with pytest.raises(ValueError, match="IMITATION: B2N finds no maps of equal stride"):
        feature_imitation(toy_setting(strides=(64,)), "N2N", "B2N")


def test_detectors_that_di_cannot_serve_are_named(detector_of):
    gfl, other = detector_of("GFL", 0), detector_of("GFL", 50, **{"MODEL.GFL.NUM_CLASSES": 2})
    with pytest.raises(ValueError, match="DI_TARGET is 'truth'; choose"):
        detection_imitation(gfl, gfl, DI_TARGET="truth")
    with pytest.raises(ValueError, match="student has 3 classes and the teacher has 2.*DI_TARGET"):
        detection_imitation(gfl, other)
    detection_imitation(gfl, other, DI_TARGET="teacher")
    with pytest.raises(ValueError, match="head needs maps at strides .8, 16, 32, 64, 128."):
        detection_imitation(detector_of("FasterRCNN", 0), gfl)
    foreign = detector_of("FasterRCNN", 0)
    foreign.model.roi_heads.box_in_features = ["p9"]
    with pytest.raises(ValueError, match="loss of the teacher's detector is not known"):
        detection_imitation(detector_of("FasterRCNN", 50), foreign)


# --- detectors


@pytest.mark.parametrize("name", ["RetinaNet", "FasterRCNN"])
def test_step_of_a_student_with_the_teachers_weights(distilled_cfg, build_seeded, make_batch, name):
    """Up to the seed, which is that of the teachers, student and teacher are one detector."""
    changes = {"DISTILL.METHODS": ("Dist2",), "DISTILL.AID.ENABLED": False}
    changes["DISTILL.DIST2.IMITATION"] = ("B2B", "N2N")
    model = build_seeded(distilled_cfg(name, changes), 100).train()
    with EventStorage():
        losses = model(make_batch())
    assert losses["loss_Dist2_fi"] == 0
    objects = Objects.from_inputs(
        [{"instances": x} for x in [x["instances"] for x in make_batch()]], CPU
    )
    teacher = model.teacher.wrapper.judge(
        model.teacher.wrapper.forward_features(make_batch(), "BGR", with_head=True), objects
    )
    expected = (teacher.factor * (teacher.cls + teacher.box)).sum() / teacher.batch_normalizer
    if teacher.roi is not None:
        expected = expected + teacher.roi.mean()
    torch.testing.assert_close(losses["loss_Dist2_di"], expected)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.distiller.parameters())
    assert model.student.backbone.fpn_output4.weight.grad.any()
