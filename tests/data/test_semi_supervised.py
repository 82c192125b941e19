"""Batches of labeled and teacher-labeled images, and how AID sees the latter."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.training import FAMILIES, JUDGING, batch_weight

from aid_d2 import add_aid_config
from aid_d2.aid import GRANULARITIES
from aid_d2.data import build_mixed_train_loader, register_coco_json
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage


@pytest.fixture
def cfg(rectangles):
    """Two names of the same images stand for the labeled and the unlabeled set."""
    _, json_file, images = rectangles
    register_coco_json([[name, json_file, images] for name in ("mixed_labeled", "mixed_pseudo")])
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED = ("mixed_labeled",), ("mixed_pseudo",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    return cfg


@pytest.mark.parametrize("ratio,unlabeled", [(0.5, 4), (0.25, 2), (0.875, 7)])
def test_every_batch_has_the_stated_mixture(cfg, ratio, unlabeled):
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.UNLABELED_RATIO = 8, ratio
    seen = set()
    for batch in islice(build_mixed_train_loader(cfg), 8):
        marks = [x.get("pseudo_labeled", False) for x in batch]
        assert marks == [False] * (8 - unlabeled) + [True] * unlabeled
        assert all(len(x["instances"]) for x in batch)
        seen |= {(mark, x["image_id"]) for mark, x in zip(marks, batch)}
    assert len(seen) == 16  # all eight images from both sets


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.3])
def test_a_ratio_that_does_not_divide_the_batch(cfg, ratio):
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.UNLABELED_RATIO = 8, ratio
    with pytest.raises(ValueError, match="UNLABELED_RATIO .* of SOLVER.IMS_PER_BATCH 8"):
        build_mixed_train_loader(cfg)


def test_classes_in_another_order(cfg, rectangles, tmp_path):
    coco = json.loads(Path(rectangles[1]).read_text())
    coco["categories"][0]["name"], coco["categories"][1]["name"] = "g", "r"
    (tmp_path / "other.json").write_text(json.dumps(coco))
    register_coco_json([["mixed_other_order", str(tmp_path / "other.json"), rectangles[2]]])
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.UNLABELED = 8, ("mixed_other_order",)
    with pytest.raises(ValueError, match="'mixed_other_order' .* has the classes .'g', 'r', 'b'."):
        build_mixed_train_loader(cfg)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_images_that_the_teacher_labeled_have_the_weight_of_all_or_full_weight(
    distilled_cfg, build_seeded, make_batch, granularity
):
    changes = {"DISTILL.AID.ALPHA": 1.0, "DISTILL.AID.GRANULARITY": granularity}
    model = build_seeded(distilled_cfg("RetinaNet", changes), 0).train()
    batch = make_batch((2, 1, 2))
    batch[1]["pseudo_labeled"] = True
    seen = []
    model.distiller["AttentionGuided"].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].weights.maps)
    )
    for iteration in (JUDGING, JUDGING + 1):
        with EventStorage(iteration):
            model(batch)
        for weights in seen.pop().values():
            assert (weights[[0, 2]] < 1).all()
            one_for_all = granularity in ("batch", "level")
            assert torch.equal(
                weights[1], weights[0] if one_for_all else torch.ones_like(weights[1])
            )
            assert torch.isfinite(weights).all()


@pytest.mark.parametrize("detector", FAMILIES)
def test_the_weight_of_a_batch_is_of_its_labeled_images(
    distilled_cfg, build_seeded, make_batch, detector
):
    # All proposals: which are drawn of an image depends on the images before it.
    drawn = {"RPN.POST_NMS_TOPK_TRAIN": 60, "ROI_HEADS.BATCH_SIZE_PER_IMAGE": 10**6}
    changes = {
        "DISTILL.AID.ALPHA": 0.1,
        "DISTILL.AID.GRANULARITY": "batch",
        **{f"MODEL.{key}": number for key, number in drawn.items()},
    }
    model = build_seeded(distilled_cfg(detector, changes), 0).train()
    batch, weights = make_batch((2, 1, 2)), []
    batch[0]["pseudo_labeled"] = True
    for scale in (1, 0.7):
        # Other labels of the teacher.
        batch[0]["instances"].gt_boxes.tensor.mul_(scale)
        model.distiller.aid_gap.zero_()
        torch.manual_seed(0)
        with EventStorage(JUDGING):
            model(batch)
        weights.append(batch_weight(model))
    assert weights[0] == pytest.approx(weights[1], rel=1e-5) and 0 < weights[0] < 1
