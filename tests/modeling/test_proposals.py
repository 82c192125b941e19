"""A second stage judged on the proposals that the student was trained on."""

import pytest
import torch
from helpers.training import DEFAULT_AID, batch_weight, step

from aid_d2.layers.matching import label_proposals
from aid_d2.modeling.ignore_regions import ignoring_regions
from aid_d2.modeling.wrappers import wrap
from aid_d2.modeling.wrappers.faster_rcnn import thin_out
from aid_d2.structures import Objects
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

CPU = torch.device("cpu")
CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}


@pytest.fixture
def trained(small_cfg, build_seeded):
    """`trained(batch, changes, ignoring)`: a student's wrapper, what it computed in a step, its
    losses, and the ground truth with the proposals.
    """

    def make(batch, changes=None, ignoring=False):
        cfg = small_cfg(
            "FasterRCNN", {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64, **(changes or {})}
        )
        model = build_seeded(ignoring_regions(cfg) if ignoring else cfg, 0).train()
        wrapper = wrap(model)
        with EventStorage():
            outputs, losses = wrapper.forward_training(batch, wrapper.proposal_modules)
        objects = Objects.from_inputs(batch, CPU)
        objects.proposals = wrapper.proposals(outputs, objects)
        return wrapper, outputs, losses, objects

    return make


@pytest.mark.parametrize("ignoring", [False, True], ids=["plain", "ignoring"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 3.0},
        {"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou"},
        CASCADE,
    ],
    ids=str,
)
def test_it_is_the_loss_that_detectron2_trained_on(trained, make_batch, changes, ignoring):
    batch = make_batch((3, 0, 2))
    if ignoring:
        batch[0]["instances"].gt_classes[0] = -1
    wrapper, outputs, losses, objects = trained(batch, changes, ignoring)
    expected = sum(x for name, x in losses.items() if name.startswith(("loss_cls", "loss_box")))
    # A cascade's own loss is the sum over its stages, and AID's their mean.
    expected = expected.detach() / len(wrapper.box_stages)
    judged = wrapper.judge(outputs, objects)
    torch.testing.assert_close(judged.proposals, expected, rtol=1e-4, atol=1e-6)
    assert not judged.roi.any()


def test_images_that_the_teacher_labeled_do_not_count(trained, make_batch):
    wrapper, outputs, _, objects = trained(make_batch((3, 2)))
    numbers = [len(x) for x in objects.proposals[0]]
    loss = {}
    for pseudo_labeled in ((), (0,), (1,), (0, 1)):
        objects.pseudo_labeled = list(pseudo_labeled)
        loss[pseudo_labeled] = wrapper.judge(outputs, objects).proposals.item()
    assert loss[0,] != pytest.approx(loss[1,], rel=1e-3)
    mean = (numbers[0] * loss[1,] + numbers[1] * loss[0,]) / sum(numbers)
    assert loss[()] == pytest.approx(mean, rel=1e-5)
    assert loss[0, 1] == loss[()]


def test_labels_are_those_of_the_students_sampling(small_cfg, build_seeded, make_batch):
    model = build_seeded(small_cfg("FasterRCNN"), 0).train()
    heads, seen = model.roi_heads, []
    sample = heads.label_and_sample_proposals
    heads.label_and_sample_proposals = lambda *args: seen.append(sample(*args)) or seen[-1]
    for seed in range(4):
        batch = make_batch((5, 0, 8), seed=seed)
        with EventStorage():
            model(batch)
        boxes = [x.proposal_boxes for x in seen[-1]]
        objects = Objects.from_inputs(batch, CPU)
        labeled = label_proposals(boxes, objects, heads.proposal_matcher, heads.num_classes)
        for ours, theirs in zip(labeled, seen[-1]):
            assert torch.equal(ours.gt_classes, theirs.gt_classes)
            on_object = ours.gt_classes < heads.num_classes
            assert on_object.any() == theirs.has("gt_boxes")
            if on_object.any():
                assert torch.equal(
                    ours.gt_boxes[on_object].tensor, theirs.gt_boxes[on_object].tensor
                )


@pytest.mark.parametrize("number,kept", [(0, 0), (1, 1), (128, 128), (300, 100), (512, 128)])
def test_a_sample_of_many_keeps_the_share_of_those_on_objects(number, kept):
    on_object = torch.arange(number) < number / 4
    boxes = Boxes(on_object[:, None].expand(-1, 4).float())
    sample = thin_out(boxes, 128).tensor[:, 0]
    assert len(sample) == kept
    assert abs(sample.sum() - kept / 4) <= 1


def says(model, class_, logit):
    """The detector, whose box head has this logit for one class everywhere, and 0 for others."""
    score = model.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        score.weight.zero_()
        score.bias.zero_()
        score.bias[class_] = logit
    return model


def test_false_alarms_of_a_teacher_lower_its_weight(
    small_cfg, distilled_cfg, build_seeded, save_teacher, make_batch
):
    cfg, weight = small_cfg("FasterRCNN"), {}
    for alarms in (0.0, 3.0):
        teacher = build_seeded(cfg, seed=6)
        files = save_teacher(cfg, says(teacher, 0, alarms))
        changes = {**files, **DEFAULT_AID, "DISTILL.AID.ALPHA": 0.5}
        model = build_seeded(distilled_cfg("FasterRCNN", changes), 5)
        says(model.student, -1, 3.0)
        step(model, make_batch((1, 0)))
        weight[alarms] = batch_weight(model)
    assert 0 < weight[3.0] < 0.7 * weight[0.0]


def test_accuracies_in_the_log_are_the_students(small_cfg, distilled_cfg, build_seeded, make_batch):
    logged = []
    for cfg in (small_cfg("FasterRCNN"), distilled_cfg("FasterRCNN", DEFAULT_AID)):
        model = build_seeded(cfg, 0).train()
        torch.manual_seed(0)
        with EventStorage(3) as storage:
            model(make_batch())
        logged.append({k: x for k, x in storage.latest().items() if k.startswith("fast_rcnn")})
    assert logged[0] and logged[0] == logged[1]
