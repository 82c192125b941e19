"""Localization distillation against its formula in plain loops, float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy import as_batch, build, constant_weights, maps, no_objects, rand, random_weights

from aid_d2.distillers.ld import LD, side_divergence
from aid_d2.modeling.context import DistillContext
from aid_d2.structures import BACKGROUND, IGNORED, DensePredictions, DetectorOutputs, LevelShape
from detectron2.utils.events import EventStorage

SIZES = {8: (3, 4), 16: (2, 2)}
LEVELS = [LevelShape(stride, *size, anchors=1) for stride, size in SIZES.items()]
NUM_ANCHORS, K, BINS = sum(x.num_anchors for x in LEVELS), 3, 17


def probabilities(logits, temperature):
    e = np.exp((logits - logits.max()) / temperature)
    return e / e.sum()


def reference_side(student, teacher, bins, temperature):
    """LD of one anchor from its 4 x bins logits."""
    total = 0.0
    for side in range(4):
        s, t = (
            probabilities(x[side * bins : (side + 1) * bins], temperature)
            for x in (student, teacher)
        )
        # 0 log 0 = 0; where the student has 0, the tests have the teacher at 0 too.
        total += sum(q * math.log(q / p) for q, p in zip(t, s) if q > 0) / bins
    return temperature**2 * total / 4


@pytest.mark.parametrize("bins,temperature", [(17, 10.0), (17, 1.0), (5, 10.0)])
def test_divergence_against_loops(bins, temperature):
    s, t = 5 * rand(7, 4 * bins, seed=1), 5 * rand(7, 4 * bins, seed=2)
    expected = [reference_side(a, b, bins, temperature) for a, b in zip(s.numpy(), t.numpy())]
    actual = side_divergence(s, t, bins, temperature)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_divergence_of_certain_and_opposite_sides(dtype):
    """All probability on one bin and on another: KL = 1e4 / T for each side."""
    s, t = (torch.zeros(1, 4, BINS, dtype=dtype) for _ in range(2))
    s[..., 3], t[..., 8] = 1e4, 1e4
    actual = side_divergence(s.flatten(1), t.flatten(1), BINS, 10.0)
    assert actual.item() == pytest.approx(10.0**2 * (1e4 / 10) / BINS, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 100.0, 1e4])
def test_extreme_logits_give_finite_losses_and_gradients(scale, dtype):
    s = (scale * rand(5, 4 * BINS, seed=1).sign()).to(dtype).requires_grad_()
    t = (scale * rand(5, 4 * BINS, seed=2).sign()).to(dtype)
    loss = side_divergence(s, t, BINS, 10.0)
    loss.sum().backward()
    assert loss.isfinite().all() and s.grad.isfinite().all()


def test_gradient():
    s, t = rand(2, 12, seed=1).requires_grad_(), rand(2, 12, seed=2)
    assert torch.autograd.gradcheck(lambda s: side_divergence(s, t, 3, 10.0), s)


# --- the method


def random_matched_idxs(seed=7):
    choice = torch.randint(3, (2, NUM_ANCHORS), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([0, BACKGROUND, IGNORED])[choice]


def make(matched_idxs, **changes):
    wrapper = SimpleNamespace(box_bins=BINS, matched_idxs=lambda predictions, objects: matched_idxs)
    return build(LD, DistillContext(wrapper, wrapper, []), **changes)


def observe(seed):
    logits = (2 * rand(2, NUM_ANCHORS, K, seed=seed)).requires_grad_()
    regression = (3 * rand(2, NUM_ANCHORS, 4 * BINS, seed=seed + 1)).requires_grad_()
    predictions = DensePredictions(LEVELS, torch.zeros(NUM_ANCHORS, 4), logits, regression, None)
    return DetectorOutputs({}, predictions=predictions)


def random_pair():
    student, teacher = observe(1), observe(3)
    for x in (teacher.predictions.logits, teacher.predictions.regression):
        x.requires_grad_(False)
    return student, teacher


def reference(student, teacher, weights, matched_idxs, weight, temperature):
    total = 0.0
    trusted = weights.per_anchor(LEVELS)
    s, t = (x.predictions.regression.detach().numpy() for x in (student, teacher))
    for n in range(2):
        for r in range(NUM_ANCHORS):
            if matched_idxs[n, r] < 0:
                continue
            score = 1 / (1 + math.exp(-student.predictions.logits[n, r].max().item()))
            side = reference_side(s[n, r], t[n, r], BINS, temperature)
            total += trusted[n, r].item() * score * side
    return weight * total


@pytest.mark.parametrize(
    "changes,expected",
    [({}, (0.25, 10.0)), ({"WEIGHT": 2.0, "TEMPERATURE": 3.0}, (2.0, 3.0))],
    ids=["published", "changed"],
)
def test_loss_against_loops(changes, expected):
    matched_idxs, weights = random_matched_idxs(), random_weights(maps(SIZES, 1))
    student, teacher = random_pair()
    losses = make(matched_idxs, **changes)(as_batch(student, teacher, weights, no_objects()))
    assert set(losses) == {"box"}
    value = reference(student, teacher, weights, matched_idxs, *expected)
    assert losses["box"].item() == pytest.approx(value, rel=1e-10)


def test_gradient_reaches_the_positive_anchors_distributions_alone():
    matched_idxs = random_matched_idxs()
    student, teacher = random_pair()
    make(matched_idxs)(as_batch(student, teacher, random_weights(maps(SIZES, 1)), no_objects()))[
        "box"
    ].backward()
    assert student.predictions.logits.grad is None
    assert torch.equal(student.predictions.regression.grad.abs().sum(-1) > 0, matched_idxs >= 0)


def test_constant_weight_scales_the_loss_and_one_changes_no_bit():
    matched_idxs = random_matched_idxs()
    student, teacher = random_pair()
    method = make(matched_idxs)
    full, weighted = (
        method(as_batch(student, teacher, constant_weights(maps(SIZES, 1), w), no_objects()))["box"]
        for w in (1.0, 0.3)
    )
    assert weighted.item() == pytest.approx(0.3 * full.item(), rel=1e-12)

    values = side_divergence(
        student.predictions.regression, teacher.predictions.regression, BINS, 10.0
    )
    score = (matched_idxs >= 0) * student.predictions.logits.detach().sigmoid().amax(-1)
    assert torch.equal(full, 0.25 * (score * values).sum())


def test_a_student_equal_to_its_teacher_has_no_loss():
    student, teacher = observe(1), observe(1)
    loss = make(random_matched_idxs())(
        as_batch(student, teacher, random_weights(maps(SIZES, 1)), no_objects())
    )["box"]
    loss.backward()
    assert loss.item() == 0
    assert student.predictions.regression.grad.abs().max() < 1e-12


def test_without_positive_anchors_the_loss_is_a_zero_with_a_graph():
    student, teacher = random_pair()
    matched_idxs = torch.full((2, NUM_ANCHORS), BACKGROUND)
    loss = make(matched_idxs)(
        as_batch(student, teacher, random_weights(maps(SIZES, 1)), no_objects())
    )["box"]
    loss.backward()
    assert loss.item() == 0
    assert (student.predictions.regression.grad == 0).all()


def test_published_constants():
    node = LD.config()
    assert (node.WEIGHT, node.TEMPERATURE) == (0.25, 10.0)


def test_serves_gfl_alone(distilled_cfg, build_seeded):
    with pytest.raises(ValueError, match="LD compares distributions of box sides"):
        build_seeded(distilled_cfg("RetinaNet", {"DISTILL.METHODS": ("LD",)}), 0)


def test_trains_the_box_predictor_alone(distilled_cfg, build_seeded, make_batch):
    model = build_seeded(distilled_cfg("GFL", {"DISTILL.METHODS": ("LD",)}), 0).train()
    with EventStorage(0):
        losses = model(make_batch((2, 0)))
    loss = losses["loss_LD_box"]
    assert loss.isfinite() and loss > 0
    loss.backward()
    head = model.student.head
    assert head.box_distribution.weight.grad.any()
    assert head.cls_score.weight.grad is None or not head.cls_score.weight.grad.any()


def test_images_without_objects_train(distilled_cfg, build_seeded, make_batch):
    model = build_seeded(distilled_cfg("GFL", {"DISTILL.METHODS": ("LD",)}), 0).train()
    with EventStorage(0):
        loss = model(make_batch((0, 0)))["loss_LD_box"]
    loss.backward()
    assert loss.item() == 0
    assert not model.student.head.box_distribution.weight.grad.any()
