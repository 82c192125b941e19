"""AID that also looks at the masks of a Mask R-CNN."""

import pytest
import torch
from helpers.training import KD_LOSSES, step

from aid_d2.aid import AID
from aid_d2.modeling.teacher import Teacher
from aid_d2.structures import Objects
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

MASK_RCNN = {"MODEL.MASK_ON": True, "MODEL.ROI_MASK_HEAD.NUM_CONV": 1}
DISTILLED = {**MASK_RCNN, "DISTILL.AID.MASKS": True}
CPU = torch.device("cpu")


def add_masks(batch, kind):
    """The batch; each object, but not an image without one, has half of its box as its mask."""
    for record in batch:
        truth = record["instances"]
        if not len(truth):
            continue
        boxes = truth.gt_boxes.tensor
        polygons = [[[x1, y1, x2, y1, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
        masks = PolygonMasks(polygons)
        if kind == "bitmask":
            masks = BitMasks.from_polygon_masks(masks, *truth.image_size)
        truth.gt_masks = masks
    return batch


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_is_that_of_the_mask_head(small_cfg, build_seeded, make_batch, kind, agnostic):
    cfg = small_cfg("FasterRCNN", {**MASK_RCNN, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": agnostic})
    teacher = Teacher(build_seeded(cfg, 0), "BGR")
    batch = add_masks(make_batch((3, 0, 2)), kind)
    heads = teacher.model.roi_heads
    heads.mask_head.loss_weight = 0.5
    outputs = teacher.wrapper.forward_features(batch, "BGR", with_head=True)
    without = teacher.wrapper.judge(outputs, Objects.from_inputs(batch, CPU)).roi
    objects = Objects.from_inputs(batch, CPU, with_masks=True)
    loss = teacher.wrapper.judge(outputs, objects).roi - without

    features = [outputs.features[stride] for stride in (4, 8, 16, 32)]
    expected = []
    for image, record in enumerate(batch):
        truth = record["instances"]
        for i in range(len(truth)):
            rois = [Boxes(torch.zeros(0, 4)) for _ in batch]
            rois[image] = truth.gt_boxes[i]
            proposal = Instances(
                truth.image_size,
                proposal_boxes=truth.gt_boxes[i],
                gt_masks=truth.gt_masks[i],
                gt_classes=truth.gt_classes[i : i + 1],
            )
            heads.mask_head.train()
            with torch.no_grad(), EventStorage():
                pooled = heads.mask_pooler(features, rois)
                expected.append(heads.mask_head(pooled, [proposal])["loss_mask"])
    torch.testing.assert_close(loss, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_batch_without_objects(small_cfg, build_seeded, make_batch):
    teacher = Teacher(build_seeded(small_cfg("FasterRCNN", MASK_RCNN), 0), "BGR")
    batch = make_batch((0, 0))
    outputs = teacher.wrapper.forward_features(batch, "BGR", with_head=True)
    objects = Objects.from_inputs(batch, CPU, with_masks=True)
    assert teacher.wrapper.judge(outputs, objects).roi.shape == (0,)


@pytest.mark.parametrize("relative", [False, True])
def test_masks_lower_the_weights(
    small_cfg, distilled_cfg, build_seeded, save_teacher, make_batch, relative
):
    cfg = small_cfg("FasterRCNN", MASK_RCNN)
    teacher = build_seeded(cfg, 1)
    # So that its masks are worse than the student's.
    torch.nn.init.constant_(teacher.roi_heads.mask_head.predictor.bias, 50.0)
    files = save_teacher(cfg, teacher)
    batch, losses = add_masks(make_batch(), "polygon"), {}
    for masks in (False, True):
        changes = {**files, **DISTILLED, "DISTILL.AID.MASKS": masks}
        changes |= {"DISTILL.AID.RELATIVE": relative, "DISTILL.AID.ALPHA": 0.02}
        losses[masks] = step(build_seeded(distilled_cfg("FasterRCNN", changes), 0), batch)
    assert losses[False].keys() == losses[True].keys() and KD_LOSSES <= losses[True].keys()
    name = "loss_AttentionGuided_feature"
    assert losses[True][name] < losses[False][name]


def test_a_teacher_without_masks_is_refused(small_cfg, distilled_cfg, build_seeded, save_teacher):
    cfg = small_cfg("FasterRCNN", {})
    files = save_teacher(cfg, build_seeded(cfg, 1))
    with pytest.raises(
        NotImplementedError, match="AID.MASKS needs a Mask R-CNN .* this is a GeneralizedRCNN"
    ):
        build_seeded(distilled_cfg("FasterRCNN", {**files, **DISTILLED}), 0)


def test_a_batch_without_masks_is_refused(make_batch):
    with pytest.raises(ValueError, match="objects without masks.*MODEL.MASK_ON True"):
        Objects.from_inputs(make_batch(), CPU, with_masks=True)


def test_masks_play_no_part_without_aid():
    assert AID(masks=True).needs_masks
    assert not AID(enabled=False, masks=True).needs_masks
