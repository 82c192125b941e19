"""Adaptive distillation loss against its formulas in plain loops, float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy import as_batch, build, constant_weights, maps, rand, random_weights

from aid_d2.distillers.adl import (
    ADL,
    adaptive_loss,
    binary_entropy,
    binary_kl,
    weighted_cross_entropy,
)
from aid_d2.layers.matching import centered_in_image
from aid_d2.modeling.context import DistillContext
from aid_d2.structures import (
    BACKGROUND,
    IGNORED,
    DensePredictions,
    DetectorOutputs,
    LevelShape,
    Objects,
)
from detectron2.utils.events import EventStorage

SIZES = {8: (4, 6), 16: (2, 3)}
LEVELS = [LevelShape(stride, *size, anchors=2) for stride, size in SIZES.items()]
NUM_ANCHORS, K = sum(x.num_anchors for x in LEVELS), 3
# The second image is smaller than the maps, 48 x 32 pixels wide and high.
IMAGE_SIZES = [(32, 48), (20, 30)]
VALUES = (-1e4, -100.0, -5.0, 0.0, 0.3, 7.0, 100.0, 1e4)
PRESETS = {"kl": "PAPER", "ce": "RELEASED"}


def log_score(z):
    """log sigmoid(z) of a float; below double's range of exp the limit."""
    return z if z < -700 else -math.log1p(math.exp(-z)) if z > -30 else z - math.exp(z)


def term(weight, log_ratio):
    """weight x log_ratio, with 0 log 0 = 0."""
    return 0.0 if weight == 0 else weight * log_ratio


def reference_parts(s, t, alpha):
    """KL, alpha-weighted CE, plain CE and H of one pair of logits."""
    q, r = math.exp(log_score(t)), math.exp(log_score(-t))
    kl = term(q, log_score(t) - log_score(s)) + term(r, log_score(-t) - log_score(-s))
    ce = -term(alpha * q, log_score(s)) - term((1 - alpha) * r, log_score(-s))
    plain = -term(q, log_score(s)) - term(r, log_score(-s))
    return max(kl, 0.0), ce, plain, -term(q, log_score(t)) - term(r, log_score(-t))


def all_pairs(dtype=torch.float64):
    s, t = torch.meshgrid(torch.tensor(VALUES), torch.tensor(VALUES), indexing="ij")
    return s.flatten().to(dtype), t.flatten().to(dtype)


def adl(s, t, form, beta, gamma, alpha=0.5):
    kl = binary_kl(s, t)
    term = kl if form == "kl" else weighted_cross_entropy(s, t, alpha)
    return adaptive_loss(term, kl + beta * binary_entropy(t), gamma)


@pytest.mark.parametrize("dtype,rel", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("alpha", [0.5, 0.25])
def test_divergences_and_entropy_against_loops(dtype, rel, alpha):
    s, t = (
        torch.cat([extreme, rand(30, seed=seed).to(dtype)])
        for seed, extreme in enumerate(all_pairs(dtype))
    )
    expected = [reference_parts(a.item(), b.item(), alpha) for a, b in zip(s, t)]
    expected = [(kl, ce, entropy) for kl, ce, _, entropy in expected]
    actual = binary_kl(s, t), weighted_cross_entropy(s, t, alpha), binary_entropy(t)
    for a, e in zip(actual, np.transpose(expected)):
        np.testing.assert_allclose(a.numpy(), e, rtol=rel, atol=1e-7 if rel > 1e-9 else 1e-15)


def test_cross_entropy_is_kl_plus_entropy():
    s, t = rand(50), rand(50, seed=1)
    expected = (binary_kl(s, t) + binary_entropy(t)) / 2
    torch.testing.assert_close(weighted_cross_entropy(s, t, 0.5), expected)


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_adaptive_loss_against_loops(gamma):
    term, exponent = rand(40).exp(), rand(40, seed=1).exp()
    expected = [(1 - math.exp(-e)) ** gamma * x for x, e in zip(term.tolist(), exponent.tolist())]
    actual = adaptive_loss(term, exponent, gamma)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)


def test_the_released_preset_is_the_released_kernel():
    """A value of sigmoid_adaptive_distillation_loss_op.cu with its config, computed apart."""
    torch.manual_seed(0)
    s, t = torch.randn(50, 80), torch.randn(50, 80) * 3
    constants = ADL.config().RELEASED
    loss = adl(s, t, constants.FORM, constants.BETA, constants.GAMMA, constants.ALPHA)
    value = loss.sum() / (t.sigmoid() ** constants.THETA).sum()
    assert value.item() == pytest.approx(0.38531, abs=5e-6)


@pytest.mark.parametrize("form,beta,gamma", [("kl", 1.5, 1.0), ("ce", 1.0, 2.0)])
def test_gradient_flows_through_the_weight(form, beta, gamma):
    s, t = rand(6).requires_grad_(), rand(6, seed=1)
    assert torch.autograd.gradcheck(lambda s: adl(s, t, form, beta, gamma), s)


@pytest.mark.parametrize("form,beta,gamma", [("kl", 1.5, 1.0), ("kl", 0.0, 1.5), ("ce", 1.0, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_saturated_logits_give_finite_losses_and_gradients(dtype, form, beta, gamma):
    """Of each pair, equal logits among them, where weight and divergence are 0."""
    s, t = all_pairs(dtype)
    s.requires_grad_()
    loss = adl(s, t, form, beta, gamma)
    loss.sum().backward()
    assert loss.isfinite().all() and (loss >= 0).all()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_gradient_where_the_weight_is_zero(gamma):
    divergence = torch.zeros(3, requires_grad=True)
    adaptive_loss(divergence, divergence, gamma).sum().backward()
    assert (divergence.grad == 0).all()


# --- the method


def predictions(logits):
    centres = [
        (x * level.stride, y * level.stride)
        for level in LEVELS
        for y in range(level.height)
        for x in range(level.width)
        for _ in range(level.anchors)
    ]
    centres = torch.tensor(centres, dtype=torch.float64)
    anchors = torch.cat([centres - 20, centres + 20], dim=1)
    return DensePredictions(LEVELS, anchors, logits, logits.new_zeros(*logits.shape[:2], 4), None)


def random_matched_idxs(seed=7):
    """Objects, background and ignored anchors, a third each."""
    choice = torch.randint(3, (2, NUM_ANCHORS), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([0, BACKGROUND, IGNORED])[choice]


def make(matched_idxs, preset="PAPER", **changes):
    """The changes are to the preset's constants."""
    wrapper = SimpleNamespace(matched_idxs=lambda predictions, objects: matched_idxs)
    constants = ADL.config().get(preset)
    for key, value in changes.items():
        constants[key] = value
    changed = {preset: constants} if constants else {}
    return build(ADL, DistillContext(wrapper, wrapper, []), PRESET=preset, **changed)


OBJECTS = Objects(
    boxes=torch.zeros(1, 4),
    classes=torch.zeros(1, dtype=torch.int64),
    counts=[1, 0],
    ignored=[torch.zeros(0, 4)] * 2,
    image_sizes=IMAGE_SIZES,
)


def observe(logits):
    return DetectorOutputs({}, predictions=predictions(logits))


def random_pair(shift=0.0):
    """Student and teacher, the latter with scores as high as the shift says."""
    s, t = rand(2, NUM_ANCHORS, K, seed=1), rand(2, NUM_ANCHORS, K, seed=2) + shift
    return observe((2 * s).requires_grad_()), observe(2 * t)


def reference(
    student, teacher, weights, matched_idxs, form, beta, gamma, alpha, theta, temperature
):
    total = divisor = 0.0
    values = weights.per_anchor(LEVELS)
    centres = (student.predictions.anchors[:, :2] + student.predictions.anchors[:, 2:]) / 2
    for n, (height, width) in enumerate(IMAGE_SIZES):
        for r, (x, y) in enumerate(centres.tolist()):
            if matched_idxs[n, r] == IGNORED or x >= width or y >= height:
                continue
            for k in range(K):
                s = student.predictions.logits[n, r, k].item() / temperature
                t = teacher.predictions.logits[n, r, k].item() / temperature
                kl, ce, plain, entropy = reference_parts(s, t, alpha)
                d = kl if form == "kl" else ce
                # KL and H add up to the plain cross-entropy.
                exponent = plain + (beta - 1) * entropy
                weight = (1 - math.exp(-exponent)) ** gamma
                total += values[n, r].item() * weight * d
                divisor += (1 / (1 + math.exp(-t))) ** theta
    return total / max(divisor, 1.0)


@pytest.mark.parametrize("shift", [0.0, -8.0], ids=["sum", "at least 1"])
@pytest.mark.parametrize(
    "preset,changes,expected",
    [
        ("PAPER", {}, ("kl", 1.5, 1.0, 0.5, 1.8, 1.0)),
        ("RELEASED", {}, ("ce", 1.0, 2.0, 0.5, 1.8, 1.0)),
        (
            "PAPER",
            {"FORM": "ce", "ALPHA": 0.3, "THETA": 1.0, "TEMPERATURE": 2.0},
            ("ce", 1.5, 1.0, 0.3, 1.0, 2.0),
        ),
    ],
    ids=["published", "released", "changed"],
)
def test_loss_against_loops(preset, changes, expected, shift):
    matched_idxs, weights = random_matched_idxs(), random_weights(maps(SIZES, 1))
    student, teacher = random_pair(shift)
    losses = make(matched_idxs, preset, **changes)(as_batch(student, teacher, weights, OBJECTS))
    assert set(losses) == {"cls"}
    value = reference(student, teacher, weights, matched_idxs, *expected)
    assert losses["cls"].item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("form", PRESETS)
def test_constant_weight_scales_the_loss_and_one_changes_no_bit(form):
    matched_idxs, method = random_matched_idxs(), make(random_matched_idxs(), PRESETS[form])
    student, teacher = random_pair()
    loss = {
        w: method(as_batch(student, teacher, constant_weights(maps(SIZES, 1), w), OBJECTS))["cls"]
        for w in (1.0, 0.3)
    }
    assert loss[0.3].item() == pytest.approx(0.3 * loss[1.0].item(), rel=1e-12)

    s, t = student.predictions.logits, teacher.predictions.logits
    values = adl(s, t, form, method.constants.BETA, method.constants.GAMMA).sum(-1)
    counted = (matched_idxs != IGNORED) & centered_in_image(
        student.predictions.anchors, IMAGE_SIZES
    )
    divisor = (counted * (t.sigmoid() ** 1.8).sum(-1)).sum().clamp(min=1)
    assert torch.equal(loss[1.0], (counted * values).sum() / divisor)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    logits = rand(2, NUM_ANCHORS, K)
    student, teacher = observe(logits.clone().requires_grad_()), observe(logits)
    loss = make(random_matched_idxs())(
        as_batch(student, teacher, random_weights(maps(SIZES, 1)), OBJECTS)
    )["cls"]
    loss.backward()
    assert loss.item() == 0
    assert student.predictions.logits.grad.abs().max() < 1e-12


def test_without_anchors_to_compare_the_loss_is_a_zero_with_a_graph():
    matched_idxs = torch.full((2, NUM_ANCHORS), IGNORED)
    student, teacher = random_pair()
    loss = make(matched_idxs)(as_batch(student, teacher, random_weights(maps(SIZES, 1)), OBJECTS))[
        "cls"
    ]
    loss.backward()
    assert loss.item() == 0
    assert (student.predictions.logits.grad == 0).all()


def test_published_constants():
    node = ADL.config()
    assert (node.WEIGHT, node.PRESET) == (1.0, "PAPER")
    for preset, published in (("PAPER", ("kl", 1.5, 1.0)), ("RELEASED", ("ce", 1.0, 2.0))):
        constants = node[preset]
        assert (constants.FORM, constants.BETA, constants.GAMMA) == published
        assert (constants.ALPHA, constants.THETA, constants.TEMPERATURE) == (0.5, 1.8, 1.0)


@pytest.mark.parametrize(
    "key,value", [("FORM", "KL"), ("GAMMA", 0.5), ("GAMMA", math.nan), ("BETA", -0.1)]
)
def test_values_out_of_range_are_named(key, value):
    with pytest.raises(ValueError, match=f"DISTILL.ADL.PAPER.{key} is .*{value}"):
        make(random_matched_idxs(), **{key: value})
    with pytest.raises(ValueError, match="DISTILL.ADL.PRESET is 'AUTHORS'"):
        make(random_matched_idxs(), preset="AUTHORS")


@pytest.mark.parametrize("detector", ["RetinaNet", "FCOS", "GFL", "FasterRCNN"])
def test_trains_the_class_predictor_alone(distilled_cfg, build_seeded, make_batch, detector):
    model = build_seeded(distilled_cfg(detector, {"DISTILL.METHODS": ("ADL",)}), 0).train()
    with EventStorage(0):
        losses = model(make_batch((2, 0)))
    loss = losses["loss_ADL_cls"]
    assert loss.isfinite() and loss > 0
    loss.backward()
    if detector == "FasterRCNN":
        head = model.student.proposal_generator.rpn_head
        classes, box = head.objectness_logits, head.anchor_deltas
    else:
        head = model.student.head
        classes = head.cls_score
        box = head.box_distribution if detector == "GFL" else head.bbox_pred
    assert classes.weight.grad.any()
    assert box.weight.grad is None or not box.weight.grad.any()
