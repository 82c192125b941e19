"""Starting a student from its teacher's pyramid and heads."""

import pytest
import torch

WIDE = {"MODEL.FPN.OUT_CHANNELS": 24}


@pytest.mark.parametrize("detector", ["RetinaNet", "FCOS", "GFL", "FasterRCNN"])
def test_all_but_the_bottom_up_network_is_the_teachers(distilled_cfg, build_seeded, detector):
    model = build_seeded(distilled_cfg(detector, {"DISTILL.INHERIT": True}), seed=0)
    alone = build_seeded(distilled_cfg(detector), seed=0)
    teacher = model.teacher.model.state_dict()
    for key, value in model.student.state_dict().items():
        source = alone.student.state_dict() if key.startswith("backbone.bottom_up") else teacher
        assert torch.equal(value, source[key]), key
    # The copy is the student's own.
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(1)
    assert all(torch.equal(x, teacher[key]) for key, x in alone.teacher.model.state_dict().items())


def test_other_shapes_are_left_alone(distilled_cfg, build_seeded):
    changes = {"DISTILL.INHERIT": True, "DISTILL.AID.ENABLED": False}
    changes["MODEL.RETINANET.NUM_CLASSES"] = 5
    model = build_seeded(distilled_cfg("RetinaNet", changes), seed=0)
    teacher = model.teacher.model.head
    assert torch.equal(model.student.head.bbox_pred.weight, teacher.bbox_pred.weight)
    assert model.student.head.cls_score.out_channels != teacher.cls_score.out_channels


def test_nothing_to_inherit(distilled_cfg, build_seeded):
    changes = {"DISTILL.INHERIT": True, "DISTILL.AID.ENABLED": False, **WIDE}
    changes["DISTILL.STUDENT"] = "RetinaNet"
    cfg = distilled_cfg("RetinaNet", changes, teacher="FasterRCNN")
    with pytest.raises(ValueError, match="DISTILL.INHERIT is True, but"):
        build_seeded(cfg, seed=0)
