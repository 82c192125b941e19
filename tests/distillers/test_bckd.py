"""BCKD against its formulas, float64, and in a detector."""

import numpy as np
import pytest
import torch
from helpers.references import Corners, boxes, reference_giou, reference_quality, sigmoid
from helpers.toy import as_batch, build, context, no_objects, rand

from aid_d2.distillers.bckd import BCKD, localization_loss, on_levels_with_objects
from aid_d2.structures import (
    BACKGROUND,
    IGNORED,
    DensePredictions,
    DetectorOutputs,
    DistillWeights,
    LevelShape,
)
from detectron2.utils.events import EventStorage

OWNER = torch.tensor([[0, BACKGROUND, 1, BACKGROUND] * 2, [BACKGROUND, 2, BACKGROUND, 2] * 2])


def dense_predictions(seed, classes=3):
    """Two images of 2x2 locations with two anchors each."""
    return DensePredictions(
        levels=[LevelShape(8, 2, 2, 2)],
        anchors=torch.zeros(8, 4),
        logits=2 * rand(2, 8, classes, seed=seed),
        regression=boxes(2, 8, seed=seed + 1),
        transform=Corners(),
    )


def outputs(seed, classes=3):
    return DetectorOutputs({}, predictions=dense_predictions(seed, classes))


def make(matched_idxs=OWNER, **changes):
    method = build(BCKD, context([8]), **changes)
    method.student.matched_idxs = lambda predictions, objects: matched_idxs
    return method


def weight_map(seed=5):
    return rand(2, 1, 2, 2, seed=seed).sigmoid()


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_losses_against_the_formulas(classes, ignored):
    student, teacher = outputs(1, classes), outputs(11, classes)
    weight = weight_map()
    matched_idxs = OWNER.where(OWNER != BACKGROUND, IGNORED) if ignored else OWNER
    losses = make(matched_idxs)(
        as_batch(student, teacher, DistillWeights({8: weight}), no_objects())
    )
    expected = {"cls": 0.0, "box": 0.0}
    for image, anchor in np.ndindex(2, 8):
        if matched_idxs[image, anchor] == IGNORED:
            continue
        w = weight[image, 0].flatten()[anchor // 2].item()
        z, t = (x.predictions.logits[image, anchor].tolist() for x in (student, teacher))
        difference = max(abs(sigmoid(a) - sigmoid(b)) for a, b in zip(z, t))
        b, b_t = (x.predictions.boxes[image, anchor].tolist() for x in (student, teacher))
        expected["cls"] += w * reference_quality(z, t) / 8
        expected["box"] += 4 * w * difference * reference_giou(b, b_t) / 8
    assert {k: x.item() for k, x in losses.items()} == pytest.approx(expected, rel=1e-8)


def test_published_weights():
    node = BCKD.config()
    assert (node.CLS_WEIGHT, node.BOX_WEIGHT) == (1.0, 4.0)
    doubled = make(CLS_WEIGHT=2.0, BOX_WEIGHT=2.0)(
        as_batch(outputs(1), outputs(11), DistillWeights({8: weight_map()}), no_objects())
    )
    losses = make()(
        as_batch(outputs(1), outputs(11), DistillWeights({8: weight_map()}), no_objects())
    )
    assert doubled["cls"].item() == pytest.approx(2 * losses["cls"].item())
    assert doubled["box"].item() == pytest.approx(losses["box"].item() / 2)


def test_the_box_loss_leaves_the_scores_alone():
    logits, target_logits = rand(5, 3, seed=1).requires_grad_(), rand(5, 3, seed=2)
    b, b_t = boxes(5, seed=3).requires_grad_(), boxes(5, seed=9)
    localization_loss(b, b_t, logits, target_logits).sum().backward()
    assert logits.grad is None and b.grad.abs().sum() > 0


@pytest.mark.parametrize("weight", [0.3, 1e-3])
def test_constant_weight_scales_each_loss(weight):
    full, weighted = (
        make()(
            as_batch(
                outputs(1),
                outputs(11),
                DistillWeights({8: w * torch.ones(2, 1, 2, 2).double()}),
                no_objects(),
            )
        )
        for w in (1.0, weight)
    )
    for part in ("cls", "box"):
        assert weighted[part].item() == pytest.approx(weight * full[part].item(), rel=1e-12)


def test_equal_predictions_have_no_loss():
    weights = DistillWeights({8: weight_map()})
    equal = make()(as_batch(outputs(1), outputs(1), weights, no_objects()))
    assert [x.item() for x in equal.values()] == [0.0, 0.0]


def test_levels_without_a_positive_anchor_are_left_out():
    levels = [LevelShape(8, 2, 2, 2), LevelShape(16, 1, 1, 2), LevelShape(32, 1, 1, 2)]
    matched_idxs = torch.full((2, 12), BACKGROUND)
    matched_idxs[1, 9] = 0
    counted = on_levels_with_objects(matched_idxs, levels)
    assert counted.tolist() == [False] * 8 + [True] * 2 + [False] * 2
    nothing = make(torch.full((2, 8), BACKGROUND))
    weights = DistillWeights({8: weight_map()})
    losses = nothing(as_batch(outputs(1), outputs(11), weights, no_objects()))
    assert [x.item() for x in losses.values()] == [0.0, 0.0]


@pytest.mark.parametrize("scale", [0.0, 100.0, 1e4])
def test_extreme_predictions_have_finite_losses_and_gradients(scale):
    student, teacher = outputs(1), outputs(11)
    for x in (student, teacher):
        x.predictions.logits = (scale * x.predictions.logits).float()
        x.predictions.regression = (scale * x.predictions.regression).float()
    leaves = [student.predictions.logits, student.predictions.regression]
    for leaf in leaves:
        leaf.requires_grad_()
    losses = make()(
        as_batch(student, teacher, DistillWeights({8: torch.ones(2, 1, 2, 2)}), no_objects())
    )
    sum(losses.values()).backward()
    assert all(x.isfinite() for x in losses.values())
    assert all(x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_a_student_with_the_teachers_weights_has_no_loss(
    distilled_cfg, build_seeded, make_batch, detector
):
    """Up to the seed, which is that of the teachers, student and teacher are one detector."""
    for seed, same in ((100, True), (0, False)):
        cfg = distilled_cfg(detector, {"DISTILL.METHODS": ("BCKD",)})
        model = build_seeded(cfg, seed).train()
        with EventStorage():
            losses = model(make_batch())
        mine = [losses[f"loss_BCKD_{part}"] for part in ("cls", "box")]
        assert all((x == 0) == same for x in mine)
        assert all(x.requires_grad and x.isfinite() for x in mine)
