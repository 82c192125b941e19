"""CrossKD against its steps by hand, on small detectors with the head's own layers."""

import numpy as np
import pytest
import torch
from helpers.detectors import wrapper_without_backbone
from helpers.toy import as_batch, rand
from torch.autograd import gradcheck

from aid_d2.distillers.crosskd import CrossKD, rescale
from aid_d2.layers.matching import counted_anchors
from aid_d2.layers.prediction_losses import mimic_losses
from aid_d2.modeling.context import pair_levels
from aid_d2.modeling.wrappers import wrap
from aid_d2.modeling.wrappers.base import record_calls
from aid_d2.structures import DetectorOutputs, DistillWeights, Objects
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

DETECTORS = ("RetinaNet", "FCOS", "GFL")
SIZES = {8: (8, 12), 16: (4, 6), 32: (2, 3), 64: (1, 2), 128: (1, 1)}
PUBLISHED = {"RetinaNet": (3, 1.0, 1.0), "FCOS": (2, 0.4, 0.75), "GFL": (3, 1.0, 4.0)}
# The predictors on the output of the cls and box tower.
PREDICTORS = {
    "RetinaNet": (("cls", "cls_score"), ("box", "bbox_pred")),
    "FCOS": (("cls", "cls_score"), ("box", "bbox_pred"), ("box", "ctrness")),
    "GFL": (("cls", "cls_score"), ("box", "box_distribution")),
}


@pytest.fixture(scope="module")
def detector_of(small_cfg, build_seeded):
    """`detector_of(name, seed, width, **keys)`: a detector with towers of three convolutions."""

    def make(name, seed=0, width=16, **keys):
        keys = {f"MODEL.{name.upper()}.{k}": x for k, x in {"NUM_CONVS": 3, **keys}.items()}
        cfg = small_cfg(name, {"MODEL.FPN.OUT_CHANNELS": width, **keys})
        return wrapper_without_backbone(cfg, build_seeded, seed)

    return make


def batch_objects(count=2):
    boxes = torch.tensor([[8.0, 8, 40, 40], [30, 4, 90, 60]])[:count]
    instances = Instances((64, 96), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1])[:count])
    return Objects.from_inputs(
        [{"instances": x} for x in [instances, instances[:0]]], torch.device("cpu")
    )


def maps(width, seed, sizes=SIZES):
    return {s: rand(2, width, *size, seed=seed + s).float() for s, size in sizes.items()}


def observe(method, wrapper, features, cut=None):
    """The head on the features, whose maps are then cut to the sizes `cut`."""
    side = "student" if wrapper is method.student else "teacher"
    with record_calls(method.recorded_modules(wrapper, side)) as calls:
        head_outputs = wrapper.head(list(features.values()))
    for stride, (height, width) in (cut or {}).items():
        features = {**features, stride: features[stride][..., :height, :width]}
    predictions = wrapper.predictions(features, head_outputs)
    return DetectorOutputs(features, head_outputs, calls, predictions)


def build(student, teacher, position=2):
    teacher.model.requires_grad_(False)
    node = CrossKD.config()
    node[student.detector.__name__.upper()].POSITION = position
    return CrossKD(node, pair_levels(student, teacher))


def weight_maps(sizes=SIZES):
    return DistillWeights(
        {s: rand(2, 1, *size, seed=s).sigmoid().float() for s, size in sizes.items()}
    )


def full(sizes=SIZES):
    return DistillWeights({s: torch.ones(2, 1, *size) for s, size in sizes.items()})


# --- the statistics


def numpy_rescale(x, target):
    axes = (0, 2, 3)
    mean, std = x.mean(axes, keepdims=True), x.std(axes, keepdims=True)
    standard = (x - mean) / (std + 1e-6)
    return standard * target.std(axes, keepdims=True) + target.mean(axes, keepdims=True)


@pytest.mark.parametrize("size", [(5, 7), (1, 2), (1, 1)])
@pytest.mark.parametrize("images", [1, 2])
def test_rescale_against_numpy(size, images):
    x, target = rand(images, 3, *size, seed=1), 4 + 3 * rand(images, 3, *size, seed=2)
    x[:, 1] = 2.5
    actual = rescale(x, target).numpy()
    np.testing.assert_allclose(actual, numpy_rescale(x.numpy(), target.numpy()), rtol=1e-9)


def test_rescale_compares_the_cells_that_both_have():
    x, target = rand(2, 3, 6, 7, seed=1), rand(2, 3, 4, 9, seed=2)
    both = x[..., :4, :7].numpy()
    mean, std = (f((0, 2, 3), keepdims=True) for f in (both.mean, both.std))
    t = target[..., :7].numpy()
    expected = (x.numpy() - mean) / (std + 1e-6) * t.std((0, 2, 3), keepdims=True)
    expected = expected + t.mean((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(rescale(x, target).numpy(), expected, rtol=1e-9)


def test_rescale_has_a_gradient_through_the_statistics():
    target = rand(2, 3, 4, 4, seed=2)
    assert gradcheck(lambda x: rescale(x, target), (rand(2, 3, 4, 4, seed=1).requires_grad_(),))


@pytest.mark.parametrize("size", [(3, 4), (1, 1)])
def test_rescale_of_constant_channels_is_finite(size):
    x = torch.full((1, 2, *size), 7.0, requires_grad=True)
    result = rescale(x, rand(1, 2, *size).float())
    (result * rand(1, 2, *size, seed=3).float()).sum().backward()
    assert result.isfinite().all() and x.grad.isfinite().all()


# --- the method


def by_hand(name, student, teacher, both, position):
    """The crossed predictions: layer by layer in the order in which the heads run."""
    own, target = both
    crossed = {}
    for branch in ("cls", "box"):
        crossed[branch] = []
        mine, theirs = (list(x.towers[branch]) for x in (student, teacher))
        for x, t in zip(own.features.values(), target.features.values()):
            seen = 0
            for layer in mine:
                seen += type(layer).__name__ == "ReLU"
                if seen == position:
                    break
                x = layer(x)
            seen, rest = 0, []
            for layer in theirs:
                seen += type(layer).__name__ == "ReLU"
                t = layer(t) if seen < position else t
                rest += [layer] if seen >= position else []
            x = torch.from_numpy(numpy_rescale(x.detach().numpy(), t.detach().numpy()))
            for layer in rest:
                x = layer(x)
            crossed[branch].append(x)
    outputs = [
        [getattr(teacher.head, layer)(x) for x in crossed[branch]]
        for branch, layer in PREDICTORS[name]
    ]
    if name == "GFL":
        outputs[1] = [x * scale for x, scale in zip(outputs[1], teacher.head.scales)]
    return teacher.predictions(target.features, outputs)


@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize("name", DETECTORS)
def test_losses_against_the_steps_by_hand(detector_of, name, position):
    student, teacher = detector_of(name, 0), detector_of(name, 50)
    method = build(student, teacher, position)
    both = [observe(method, x, maps(16, seed)) for x, seed in ((student, 1), (teacher, 2))]
    losses = method(as_batch(*both, weight_maps(), batch_objects()))
    matched_idxs = student.matched_idxs(both[0].predictions, batch_objects())
    assert (matched_idxs >= 0).sum() > 1
    crossed = by_hand(name, student, teacher, both, position)
    expected = mimic_losses(
        crossed,
        both[1].predictions,
        weight_maps().per_anchor(both[1].predictions.levels),
        matched_idxs,
        counted_anchors(matched_idxs, both[1].predictions.anchors, batch_objects()),
        teacher.box_distance(crossed, both[1].predictions),
        by_confidence=name == "GFL",
    )
    _, cls_weight, box_weight = PUBLISHED[name]
    assert losses["cls"].item() == pytest.approx(cls_weight * expected[0].item(), rel=1e-4)
    assert losses["box"].item() == pytest.approx(box_weight * expected[1].item(), rel=1e-4)


@pytest.mark.parametrize("name", DETECTORS)
def test_published_constants(name):
    node = CrossKD.config()[name.upper()]
    assert (node.POSITION, node.CLS_WEIGHT, node.BOX_WEIGHT) == PUBLISHED[name]


@pytest.mark.parametrize(
    "name,changes",
    [("RetinaNet", {}), ("FCOS", {}), ("GFL", {}), ("RetinaNet", {"NORM": "BN"})],
    ids=str,
)
def test_a_student_equal_to_its_teacher_has_no_loss(detector_of, name, changes):
    """Also if every level has a norm of its own, in this step and the next."""
    teacher = detector_of(name, 0, **changes)
    for i, (key, buffer) in enumerate(teacher.head.named_buffers()):
        if not key.endswith("num_batches_tracked"):
            buffer.add_(0.2 * rand(*buffer.shape, seed=i).abs())
    student = wrap(teacher.model)
    method = build(student, teacher)
    for seed in (1, 9):
        mine, theirs = (observe(method, x, maps(16, seed)) for x in (student, teacher))
        losses = method(as_batch(mine, theirs, weight_maps(), batch_objects()))
        other = method(
            as_batch(observe(method, student, maps(16, 5)), theirs, weight_maps(), batch_objects())
        )
        for part in losses:
            assert losses[part] < 1e-5 * other[part]


@pytest.mark.parametrize("name", DETECTORS)
def test_gradient_reaches_the_student_below_the_cut_alone(detector_of, name):
    student, teacher = detector_of(name, 0, width=16), detector_of(name, 50, width=24)
    student.model.requires_grad_(True)
    method = build(student, teacher)
    assert set(method.adapters) == {"cls", "box"}
    both = [observe(method, x, maps(width, 1)) for x, width in ((student, 16), (teacher, 24))]
    losses = method(as_batch(*both, weight_maps(), batch_objects()))
    sum(losses.values()).backward()
    for p in method.parameters():
        assert p.grad.isfinite().all() and p.grad.any()
    assert len(list(method.parameters())) == 4
    for tower in student.towers.values():
        convolutions = [x for x in tower if isinstance(x, torch.nn.Conv2d)]
        reached = [x.weight.grad is not None and bool(x.weight.grad.any()) for x in convolutions]
        assert reached == [True, True, False]
    assert all(p.grad is None for p in teacher.model.parameters())


def test_equal_towers_need_no_adapter(detector_of):
    assert not list(build(detector_of("GFL", 0), detector_of("GFL", 50)).parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_constant_weight_scales_each_loss(detector_of, name):
    student, teacher = detector_of(name, 0), detector_of(name, 50)
    method = build(student, teacher)
    both = [observe(method, x, maps(16, 1)) for x in (student, teacher)]
    whole = method(as_batch(*both, full(), batch_objects()))
    part = method(
        as_batch(
            *both, DistillWeights({s: 0.3 * x for s, x in full().maps.items()}), batch_objects()
        )
    )
    for key in whole:
        assert part[key].item() == pytest.approx(0.3 * whole[key].item(), rel=1e-5)


def test_padding_of_one_detector_alone_is_cut(detector_of):
    """Beyond the other detector's maps there are no anchors, and no part in the statistics."""
    student, teacher = detector_of("GFL", 0), detector_of("GFL", 50)
    student.model.requires_grad_(False)
    # After the last convolution only the predictor follows, which reaches a single cell far.
    method = build(student, teacher, position=3)
    padded = maps(16, 1, {s: (h + 3, w + 2) for s, (h, w) in SIZES.items()})
    mine, theirs = (
        observe(method, student, padded, cut=SIZES),
        observe(method, teacher, maps(16, 2)),
    )
    before = method(as_batch(mine, theirs, full(), batch_objects()))
    for relu in method.recorded_modules(student, "student"):
        for call, (height, width) in zip(mine.calls[relu], SIZES.values()):
            call.inputs[0][..., height + 1 :, :] = 1e3
            call.inputs[0][..., :, width + 1 :] = 1e3
    after = method(as_batch(mine, theirs, full(), batch_objects()))
    for part in before:
        assert before[part] > 0 and torch.equal(before[part], after[part])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_calls_in_half_precision(detector_of, dtype):
    student, teacher = detector_of("FCOS", 0), detector_of("FCOS", 50)
    method = build(student, teacher)
    both = [observe(method, x, maps(16, s)) for x, s in ((student, 1), (teacher, 2))]
    single = method(as_batch(*both, full(), batch_objects()))
    for x in both:
        x.calls = {
            relu: [call._replace(inputs=(call.inputs[0].to(dtype),)) for call in calls]
            for relu, calls in x.calls.items()
        }
    half = method(as_batch(*both, full(), batch_objects()))
    for key in single:
        assert half[key].dtype == torch.float32
        assert half[key].item() == pytest.approx(single[key].item(), rel=0.05)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 65504.0])
@pytest.mark.parametrize("name", DETECTORS)
def test_extreme_maps_and_no_objects(detector_of, name, scale):
    student, teacher = detector_of(name, 0, width=16), detector_of(name, 50, width=24)
    method = build(student, teacher)
    leaves = {s: (scale * x).requires_grad_() for s, x in maps(16, 1).items()}
    both = [
        observe(method, x, features) for x, features in ((student, leaves), (teacher, maps(24, 2)))
    ]
    losses = method(as_batch(*both, weight_maps(), batch_objects(0)))
    sum(losses.values()).backward()
    assert all(x.isfinite() for x in losses.values())
    assert all(x.grad.isfinite().all() for x in [*leaves.values(), *method.parameters()])


@pytest.mark.parametrize("position", [0, 4])
def test_a_position_beyond_the_towers_is_named(detector_of, position):
    with pytest.raises(ValueError, match="CROSSKD.GFL.POSITION is .* 3 convolutions .NUM_CONVS"):
        build(detector_of("GFL", 0), detector_of("GFL", 50), position)
    shallow = detector_of("GFL", 50, NUM_CONVS=1)
    with pytest.raises(ValueError, match="teacher has 1 convolutions"):
        build(detector_of("GFL", 0), shallow, 2)


def test_steps_of_a_detector(distilled_cfg, build_seeded, make_batch):
    """In float32 and under autocast, where the towers compute in half precision."""
    changes = {"DISTILL.METHODS": ("CrossKD",), "DISTILL.CROSSKD.RETINANET.POSITION": 1}
    model = build_seeded(distilled_cfg("RetinaNet", changes), seed=0).train()
    for amp in (False, True):
        model.zero_grad()
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            losses = model(make_batch())
        mine = [losses[f"loss_CrossKD_{part}"] for part in ("cls", "box")]
        assert all(x > 0 and x.isfinite() and x.dtype == torch.float32 for x in mine)
        sum(mine).backward()
        convolution = model.student.head.cls_subnet[0]
        assert convolution.weight.grad.isfinite().all() and convolution.weight.grad.any()
