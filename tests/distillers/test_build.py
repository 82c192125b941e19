"""Methods that compare predictions refuse detectors whose predictions mean different things."""

import pytest

ALONE = {"DISTILL.METHODS": ("ADL",), "DISTILL.AID.ENABLED": False}


@pytest.mark.parametrize(
    "detector,teacher,changes,problem",
    [
        ("RetinaNet", "FCOS", {}, "a RetinaNet and a FCOS"),
        ("RetinaNet", "RetinaNet", {"MODEL.RETINANET.NUM_CLASSES": 5}, "5 and 3 classes"),
        (
            "FasterRCNN",
            "FasterRCNN",
            {
                "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5"],
                "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64]],
            },
            "different pyramid levels",
        ),
        (
            "RetinaNet",
            "RetinaNet",
            {"MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]]},
            "different anchors",
        ),
        ("RetinaNet", "RetinaNet", {"MODEL.ANCHOR_GENERATOR.OFFSET": 0.5}, "different anchors"),
        ("GFL", "GFL", {"MODEL.GFL.REG_MAX": 8}, "different box regression .*MODEL.GFL.REG_MAX"),
        (
            "RetinaNet",
            "RetinaNet",
            {"MODEL.RETINANET.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0)},
            "different box regression",
        ),
    ],
    ids=["wrapper", "classes", "levels", "anchors", "offset", "bins", "deltas"],
)
def test_predictions_that_cannot_be_compared(
    distilled_cfg, build_seeded, detector, teacher, changes, problem
):
    cfg = distilled_cfg(detector, {**ALONE, **changes}, teacher=teacher)
    with pytest.raises(ValueError, match=f"ADL compares .* these have {problem}.*such as PKD"):
        build_seeded(cfg, seed=0)


@pytest.mark.parametrize("method, detector", [("GID", "RetinaNet"), ("Dist2", "FasterRCNN")])
def test_boxes_need_levels_that_double(
    small_cfg, distilled_cfg, build_seeded, save_teacher, method, detector
):
    levels = {
        "MODEL.RETINANET.IN_FEATURES": ["p3", "p5"],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p5"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32]] + [[64]] * (detector == "FasterRCNN"),
    }
    teacher = small_cfg(detector, levels)
    files = save_teacher(teacher, build_seeded(teacher, seed=6))
    cfg = distilled_cfg(detector, {**levels, **files, "DISTILL.METHODS": (method,)})
    with pytest.raises(ValueError, match=f"{method} pools boxes, for which strides have to double"):
        build_seeded(cfg, seed=0)


def test_a_detector_of_no_known_kind(distilled_cfg, build_seeded):
    changes = {
        "DISTILL.STUDENT": "ProposalNetwork",
        "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128]],
    }
    with pytest.raises(ValueError, match="ADL compares dense predictions, and a ProposalNetwork"):
        build_seeded(distilled_cfg("RetinaNet", {**ALONE, **changes}), seed=0)


@pytest.mark.parametrize(
    "detector,teacher,changes,method",
    [
        ("RetinaNet", "RetinaNet", {}, "CrossKD"),
        ("FCOS", "FCOS", {}, "CrossKD"),
        ("GFL", "GFL", {}, "CrossKD"),
        ("FasterRCNN", "FasterRCNN", {}, "PKD"),
        ("RetinaNet", "FasterRCNN", {}, "PKD"),
        ("GFL", "GFL", {"DISTILL.CROSSKD.GFL.POSITION": 3}, "PKD"),
    ],
    ids=["RetinaNet", "FCOS", "GFL", "FasterRCNN", "unlike", "short-tower"],
)
def test_auto_takes_what_fits(distilled_cfg, build_seeded, detector, teacher, changes, method):
    position = {f"DISTILL.CROSSKD.{x}.POSITION": 1 for x in ("RETINANET", "FCOS", "GFL")}
    changes = {"DISTILL.METHODS": ("auto",), **position, **changes}
    model = build_seeded(distilled_cfg(detector, changes, teacher=teacher), seed=0)
    assert list(model.distiller) == [method]
