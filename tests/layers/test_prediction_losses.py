"""The teacher's predictions as targets, against their formulas in NumPy, float64."""

import math

import numpy as np
import pytest
import torch
from helpers.references import (
    Corners,
    boxes,
    reference_divergence,
    reference_giou,
    reference_iou,
    reference_quality,
    sigmoid,
)
from helpers.toy import rand
from torch.autograd import gradcheck

from aid_d2.layers.iou import giou_loss
from aid_d2.layers.prediction_losses import (
    distribution_divergence,
    iou_loss,
    mimic_losses,
    soft_quality_loss,
)
from aid_d2.modeling.gfl.losses import BoxDistribution
from aid_d2.structures import BACKGROUND, IGNORED, DensePredictions, LevelShape

EXTREME = [-1e4, -100.0, -30.0, -1.0, 0.0, 2.0, 30.0, 100.0, 1e4]


# --- the scores


def test_soft_quality_loss_against_its_formula():
    logits, targets = 3 * rand(2, 5, 4, seed=1), 3 * rand(2, 5, 4, seed=2)
    actual = soft_quality_loss(logits, targets)
    for index in np.ndindex(2, 5):
        expected = reference_quality(logits[index].tolist(), targets[index].tolist())
        assert actual[index].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("z", EXTREME)
def test_soft_quality_loss_of_saturated_scores(z):
    for t in EXTREME:
        logits = torch.tensor([[z]], dtype=torch.float64, requires_grad=True)
        loss = soft_quality_loss(logits, torch.tensor([[t]], dtype=torch.float64))
        loss.sum().backward()
        assert loss.item() == pytest.approx(reference_quality([z], [t]), rel=1e-9, abs=1e-9)
        assert logits.grad.isfinite().all()
        single = logits.detach().float().requires_grad_()
        loss = soft_quality_loss(single, torch.tensor([[t]]))
        loss.sum().backward()
        assert loss.item() == pytest.approx(reference_quality([z], [t]), rel=1e-5, abs=1e-5)
        assert single.grad.isfinite().all()


def test_soft_quality_loss_has_a_gradient_in_its_weight_too():
    targets = rand(3, 4, seed=2)
    assert gradcheck(
        lambda x: soft_quality_loss(x, targets), (rand(3, 4, seed=1).requires_grad_(),)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype):
    logits = (20 * rand(2, 6, 3, seed=1)).to(dtype).requires_grad_()
    sides = (20 * rand(2, 6, 68, seed=2)).to(dtype).requires_grad_()
    loss = soft_quality_loss(logits, logits.detach().flip(1)).sum()
    loss = loss + distribution_divergence(sides, sides.detach().flip(1)).sum()
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and sides.grad.isfinite().all()


# --- the boxes


def test_iou_loss_against_its_formula():
    a, b = boxes(40, seed=1), boxes(40, seed=7)
    a[0] = torch.tensor([0.0, 0, 10, 10])
    b[0] = torch.tensor([50.0, 50, 60, 70])
    expected = [reference_iou(x, y) for x, y in zip(a.tolist(), b.tolist())]
    np.testing.assert_allclose(iou_loss(a, b).numpy(), expected, rtol=1e-10)
    assert gradcheck(lambda x: iou_loss(x, b[1:]), (a[1:].requires_grad_(),))


def test_iou_loss_of_boxes_without_area():
    point = torch.tensor([[5.0, 5, 5, 5], [5, 0, 5, 10], [0, 0, 10, 10]], dtype=torch.float64)
    a = point.repeat_interleave(3, 0).requires_grad_()
    loss = iou_loss(a, point.repeat(3, 1)).view(3, 3)
    assert (loss.diagonal() == 0).all()
    assert loss[0, 2].item() == pytest.approx(math.log(101))
    loss.sum().backward()
    assert a.grad.isfinite().all() and a.grad.abs().max() <= 20


def test_distribution_divergence_against_its_formula():
    logits, targets = 3 * rand(2, 5, 20, seed=1), 3 * rand(2, 5, 20, seed=2)
    actual = distribution_divergence(logits, targets)
    for index in np.ndindex(2, 5):
        expected = reference_divergence(logits[index].numpy(), targets[index].numpy())
        assert actual[index].item() == pytest.approx(expected, rel=1e-9)
    assert gradcheck(
        lambda x: distribution_divergence(x, targets), (logits.clone().requires_grad_(),)
    )
    assert (distribution_divergence(targets, targets) == 0).all()


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_distribution_divergence_of_saturated_bins(scale):
    logits = (scale * rand(4, 20, seed=1)).float().requires_grad_()
    targets = (scale * rand(4, 20, seed=2)).float()
    loss = distribution_divergence(logits, targets)
    expected = [
        reference_divergence(x, y)
        for x, y in zip(logits.detach().double().numpy(), targets.double().numpy())
    ]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-4)
    loss.sum().backward()
    assert logits.grad.isfinite().all()


# --- both


def dense_predictions(detector, seed, classes=3):
    """Two images of 2x3 locations with an anchor each."""
    gfl = detector == "GFL"
    low = 20 * rand(6, 2, seed=40)
    return DensePredictions(
        levels=[LevelShape(8, 2, 3, 1)],
        anchors=torch.cat([low, low + 64], dim=1),
        logits=2 * rand(2, 6, classes, seed=seed),
        regression=2 * rand(2, 6, 20, seed=seed + 1) if gfl else boxes(2, 6, seed=seed + 1),
        transform=BoxDistribution(4) if gfl else Corners(),
    )


def box_reference(detector, predicted, target, index):
    if detector == "GFL":
        return reference_divergence(
            predicted.regression[index].numpy(), target.regression[index].numpy()
        )
    loss = reference_iou if detector == "FCOS" else reference_giou
    return loss(predicted.boxes[index].tolist(), target.boxes[index].tolist())


# Three positive anchors.
OWNER = torch.tensor([[0, BACKGROUND, 1, BACKGROUND, 1, IGNORED], [BACKGROUND] * 6])
COUNTED = OWNER != IGNORED


def mimic(detector, predicted, target, weight, counted=COUNTED):
    """As the wrapper of a detector asks for them."""
    distance = {
        "GFL": lambda: distribution_divergence(predicted.regression, target.regression),
        "FCOS": lambda: iou_loss(predicted.boxes, target.boxes),
    }.get(detector, lambda: giou_loss(predicted.boxes, target.boxes))()
    by_confidence = detector == "GFL"
    return mimic_losses(predicted, target, weight, OWNER, counted, distance, by_confidence)


@pytest.mark.parametrize("detector", ["RetinaNet", "FCOS", "GFL", "GeneralizedRCNN"])
def test_mimic_losses_against_their_formulas(detector):
    predicted, target = dense_predictions(detector, 1), dense_predictions(detector, 11)
    weight = rand(2, 6, seed=21).sigmoid()
    cls, box = mimic(detector, predicted, target, weight)
    expected_cls = expected_box = confidence = 0.0
    for index in np.ndindex(2, 6):
        if not COUNTED[index]:
            continue
        w, score = weight[index].item(), max(map(sigmoid, target.logits[index].tolist()))
        expected_cls += w * reference_quality(
            predicted.logits[index].tolist(), target.logits[index].tolist()
        )
        expected_box += w * score * box_reference(detector, predicted, target, index)
        confidence += score
    assert confidence > 1
    assert cls.item() == pytest.approx(expected_cls / 3, rel=1e-6)
    divisor = confidence if detector == "GFL" else 3
    assert box.item() == pytest.approx(expected_box / divisor, rel=1e-6)


def test_a_teacher_that_sees_nothing_does_not_blow_up_the_box_loss():
    """The divisor is at least 1."""
    predicted, target = dense_predictions("GFL", 1), dense_predictions("GFL", 11)
    target.logits = target.logits - 20
    every = torch.ones(2, 6, dtype=torch.bool)
    _, box = mimic("GFL", predicted, target, torch.ones(2, 6), every)
    expected = sum(
        sigmoid(target.logits[i].max().item()) * box_reference("GFL", predicted, target, i)
        for i in np.ndindex(2, 6)
    )
    assert box.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("detector", ["RetinaNet", "FCOS", "GFL"])
def test_predictions_equal_to_the_teachers_have_no_loss(detector):
    target = dense_predictions(detector, 1)
    losses = mimic(detector, target, target, torch.ones(2, 6))
    assert [x.item() for x in losses] == pytest.approx([0, 0], abs=1e-6)
