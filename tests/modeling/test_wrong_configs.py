"""Wrong keys are named; a distilled detector can be built without a config."""

import pytest
import torch
from helpers.training import spy, step

from aid_d2 import AID, DistilledDetector
from aid_d2.distillers import Distiller
from aid_d2.modeling.context import pair_levels
from aid_d2.modeling.ignore_regions import ignoring_regions
from aid_d2.modeling.teacher import Teacher
from aid_d2.modeling.wrappers import wrap


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
    """A distiller of one's own needs no config: L1 of the finest maps, weighted by AID."""

    class L1(Distiller):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, batch):
            s, t = batch.student.features[8], batch.teacher.features[8]
            return {"mean": (batch.weights.maps[8] * (s - t)).abs().mean()}

    student, detector = (build_seeded(small_cfg("RetinaNet"), seed) for seed in (0, 1))
    teacher = Teacher(detector, "BGR")
    model = DistilledDetector(
        student=student,
        teacher=teacher,
        distillers={"L1": L1()},
        context=pair_levels(wrap(student), teacher.wrapper),
        aid=AID(alpha=0.0),
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
    model = build_seeded(ignoring_regions(distilled_cfg("RetinaNet")), 0)
    batch = make_batch((1, 1))
    seen = []
    wrapper = model.context.teacher
    wrapper.judge = spy(wrapper.judge, seen)
    step(model, batch)
    with_ignore_region(batch, [0.0, 0, 96, 64])
    step(model, batch)
    assert seen[0].objects.counts == seen[1].objects.counts == [1, 1]
    assert (seen[1].background < seen[0].background).any()
    assert (seen[1].background <= seen[0].background).all()
