"""Weight 0, or distillation switched off, is the plain student."""

import random

import numpy as np
import pytest
import torch
from helpers.training import FAMILIES, assert_equal, step, train

# --- plain training


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
    results, plain = [], small_cfg(detector, common)
    # The first backward pass of a process rounds otherwise than all later ones.
    for cfg in (plain, plain, distilled_cfg(detector, {**common, "DISTILL.WEIGHT": 0.0})):
        model = build_seeded(cfg, 3)
        seed_everything(4)
        results.append((*train(model, cfg, make_batch((2, 1))), random_state()))
    _, plain, distilled = results
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
