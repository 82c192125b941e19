"""AID with a Cascade R-CNN as teacher and as student."""

import pytest
import torch
from helpers.training import KD_LOSSES, step

from aid_d2.modeling.teacher import Teacher
from aid_d2.structures import Objects
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_loss_is_the_mean_over_stages_on_refined_boxes(small_cfg, build_seeded, make_batch, kind):
    cfg = small_cfg("FasterRCNN", {**CASCADE, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": kind})
    teacher, batch = Teacher(build_seeded(cfg, 0), "BGR"), make_batch((3, 0, 2))
    heads = teacher.model.roi_heads
    outputs = teacher.wrapper.forward_features(batch, "BGR", with_head=True)
    losses = teacher.wrapper.judge(outputs, Objects.from_inputs(batch, torch.device("cpu")))

    features = [outputs.features[stride] for stride in (4, 8, 16, 32)]
    expected, moved = [], []
    for image, record in enumerate(batch):
        truth = record["instances"]
        for box, label in zip(truth.gt_boxes, truth.gt_classes):
            gt, current, stages = Boxes(box[None]), Boxes(box[None]), []
            for head, predictor in zip(heads.box_head, heads.box_predictor):
                rois = [Boxes(torch.zeros(0, 4)) for _ in batch]
                rois[image] = current
                proposal = Instances(
                    truth.image_size, proposal_boxes=current, gt_boxes=gt, gt_classes=label[None]
                )
                with torch.no_grad(), EventStorage():
                    predictions = predictor(head(heads.box_pooler(features, rois)))
                    stages.append(sum(predictor.losses(predictions, [proposal]).values()))
                    current = Boxes(predictor.predict_boxes(predictions, [proposal])[0])
                current.clip(truth.image_size)
            moved.append((current.tensor - box).abs().max())
            expected.append(sum(stages) / len(stages))
    assert min(moved) > 0.01
    torch.testing.assert_close(losses.roi, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("student", ["FasterRCNN", "RetinaNet"])
def test_as_a_teacher_with_aid(
    small_cfg, distilled_cfg, build_seeded, save_teacher, make_batch, student
):
    cfg = small_cfg("FasterRCNN", CASCADE)
    files = save_teacher(cfg, build_seeded(cfg, 0))
    losses = step(build_seeded(distilled_cfg(student, files), 0), make_batch())
    assert KD_LOSSES <= set(losses)


def test_as_a_student_with_aid(small_cfg, distilled_cfg, build_seeded, save_teacher, make_batch):
    cfg = small_cfg("FasterRCNN", CASCADE)
    files = save_teacher(cfg, build_seeded(cfg, 1))
    losses = step(build_seeded(distilled_cfg("FasterRCNN", {**files, **CASCADE}), 0), make_batch())
    assert KD_LOSSES <= set(losses)
