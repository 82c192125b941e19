"""Unreduced losses against the detectors' own losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aid_d2.aid import AID, GRANULARITIES, image_loss, level_loss
from aid_d2.layers.cells import smallest_objects
from aid_d2.layers.matching import inside_images, match_by_iou
from aid_d2.modeling.teacher import Teacher
from aid_d2.modeling.wrappers import WRAPPER_REGISTRY, wrap
from aid_d2.modeling.wrappers.faster_rcnn import (
    hardest_background,
    sampling_frequency,
)
from aid_d2.modeling.wrappers.retinanet import RetinaNetWrapper
from aid_d2.structures import BACKGROUND, IGNORED, LevelShape, Objects
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

CPU = torch.device("cpu")


def make_teacher(small_cfg, build_seeded, wrapper, changes=None, seed=0):
    """A detector whose random head says something else at every anchor."""
    model = build_seeded(small_cfg(wrapper, changes), seed)
    head = model.head if wrapper == "RetinaNet" else model.proposal_generator.rpn_head
    predictors = [p for m in head.modules() if isinstance(m, torch.nn.Conv2d) for p in [m.weight]]
    for weight in predictors[-2:]:
        weight.data.mul_(3)
    return Teacher(model, "BGR")


@pytest.fixture
def teacher_of(small_cfg, build_seeded):
    return lambda detector, changes=None: make_teacher(small_cfg, build_seeded, detector, changes)


def objects_of(batch):
    return Objects.from_inputs(batch, CPU)


def observe(teacher, batch):
    outputs = teacher.wrapper.forward_features(batch, "BGR", with_head=True)
    return outputs, teacher.wrapper.judge(outputs, objects_of(batch))


def test_the_wrapper_is_that_of_the_nearest_base_class(small_cfg, build_seeded, monkeypatch):
    class Ours(RetinaNet):
        pass

    class OursWrapper(RetinaNetWrapper):
        detector = Ours

    class AnyWrapper(RetinaNetWrapper):
        detector = torch.nn.Module

    monkeypatch.setitem(WRAPPER_REGISTRY._obj_map, "OursWrapper", OursWrapper)
    monkeypatch.setitem(WRAPPER_REGISTRY._obj_map, "AnyWrapper", AnyWrapper)
    model = build_seeded(small_cfg("RetinaNet"), 0)
    assert type(wrap(model)) is RetinaNetWrapper
    for kind in (Ours, type("Derived", (Ours,), {})):
        model.__class__ = kind
        assert type(wrap(model)) is OursWrapper


# --- RetinaNet


def retinanet_losses(model, batch, num_positive):
    """Detectron2's own loss, with the normaliser that its running mean would settle at."""
    model.loss_normalizer = max(num_positive, 1)
    with torch.no_grad(), EventStorage():
        images = model.preprocess_image(batch)
        features = [model.backbone(images.tensor)[name] for name in model.head_in_features]
        instances = [x["instances"] for x in batch]
        return model.forward_training(images, features, model.head(features), instances)


REGRESSION = [
    {"MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0},
    {"MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.1},
    {"MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou"},
]


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("changes", REGRESSION, ids=str)
def test_retinanet_levels_add_up_to_its_loss(teacher_of, make_batch, changes, counts):
    teacher, batch = teacher_of("RetinaNet", changes), make_batch(counts)
    _, losses = observe(teacher, batch)
    num_positive = int((losses.matched_idxs >= 0).sum())
    expected = retinanet_losses(teacher.model, batch, num_positive)
    cls, box = (x.sum() / losses.batch_normalizer for x in (losses.cls, losses.box))
    torch.testing.assert_close(cls, expected["loss_cls"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(box, expected["loss_box_reg"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        level_loss(losses).sum(), sum(expected.values()), rtol=1e-4, atol=1e-6
    )


def test_retinanet_images_add_up_to_the_loss_on_each(teacher_of, make_batch):
    teacher, batch = teacher_of("RetinaNet"), make_batch((3, 0, 2))
    _, losses = observe(teacher, batch)
    for index, image in enumerate(batch):
        num_positive = int((losses.matched_idxs[index] >= 0).sum())
        expected = sum(retinanet_losses(teacher.model, [image], num_positive).values())
        torch.testing.assert_close(image_loss(losses).sum(1)[index], expected, rtol=1e-4, atol=1e-6)


def test_retinanet_matches_are_its_own_labels(teacher_of, make_batch):
    teacher, batch = teacher_of("RetinaNet"), make_batch((4, 0, 3))
    outputs, losses = observe(teacher, batch)
    anchors = teacher.model.anchor_generator(list(outputs.features.values()))
    labels, boxes = teacher.model.label_anchors(anchors, [x["instances"] for x in batch])
    objects = objects_of(batch)
    for image in range(3):
        matched_idxs, positive = losses.matched_idxs[image], losses.matched_idxs[image] >= 0
        assert torch.equal(matched_idxs == BACKGROUND, labels[image] == teacher.model.num_classes)
        assert torch.equal(matched_idxs == IGNORED, labels[image] == -1)
        assert torch.equal(objects.classes[matched_idxs[positive]], labels[image][positive])
        assert torch.equal(objects.boxes[matched_idxs[positive]], boxes[image][positive])


def test_retinanet_anchors_lie_in_the_documented_order(teacher_of, make_batch):
    """A logit raised at one place of one level's map appears at that place of `split`."""
    teacher, batch = teacher_of("RetinaNet"), make_batch((1, 1))
    outputs, before = observe(teacher, batch)
    logits = [x.clone() for x in outputs.head_outputs[0]]
    num_classes = teacher.model.num_classes
    anchor, row, column = 1, 2, 3
    logits[1][1, anchor * num_classes, row, column] += 20
    raised = replace(outputs, head_outputs=[logits, outputs.head_outputs[1]])
    after = teacher.wrapper.judge(raised, objects_of(batch))
    for level, (old, new) in enumerate(zip(before.split(before.cls), after.split(after.cls))):
        changed = (old != new).nonzero().tolist()
        assert changed == ([[1, row, column, anchor]] if level == 1 else [])


# --- Faster R-CNN


def rpn_losses(rpn, outputs, batch, draws):
    """(draws,) Detectron2's sampled RPN loss."""
    features = list(outputs.features.values())
    anchors = rpn.anchor_generator(features)
    logits, deltas = outputs.head_outputs
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
    deltas = [
        x.view(len(x), -1, 4, *x.shape[-2:]).permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas
    ]
    instances = [x["instances"] for x in batch]
    result = []
    with torch.no_grad(), EventStorage():
        for _ in range(draws):
            labels, boxes = rpn.label_and_sample_anchors(anchors, instances)
            result.append(sum(rpn.losses(anchors, logits, labels, deltas, boxes).values()))
    return torch.stack(result).double()


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64},
        # Fewer positives are drawn than there are, and losses are weighted.
        {
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 12,
            "MODEL.RPN.POSITIVE_FRACTION": 0.3,
            "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 0.5,
            "MODEL.RPN.LOSS_WEIGHT": 2.0,
        },
        {"MODEL.RPN.BOUNDARY_THRESH": 4},
    ],
    ids=str,
)
def test_rpn_levels_add_up_to_the_mean_of_its_sampled_loss(teacher_of, make_batch, changes):
    torch.manual_seed(0)
    teacher, batch = teacher_of("FasterRCNN", changes), make_batch((4, 0, 3))
    outputs, losses = observe(teacher, batch)
    sampled = rpn_losses(teacher.model.proposal_generator, outputs, batch, draws=300)
    error = sampled.std() / 300**0.5
    actual = level_loss(replace(losses, roi=None)).sum()
    assert error < 0.02 * sampled.mean()
    assert abs(actual - sampled.mean()) < 4 * error


@pytest.mark.parametrize("num_positive,num_negative", [(3, 90), (40, 90), (40, 5), (0, 90), (3, 4)])
def test_sampling_frequency_is_that_of_detectron2(num_positive, num_negative):
    torch.manual_seed(0)
    matched_idxs = torch.tensor([[5] * num_positive + [BACKGROUND] * num_negative + [IGNORED] * 6])
    labels = torch.where(matched_idxs[0] >= 0, 1, torch.where(matched_idxs[0] == BACKGROUND, 0, -1))
    counts = torch.zeros(matched_idxs.shape[1])
    for _ in range(400):
        for index in subsample_labels(labels, 21, 0.5, 0):
            counts[index] += 1
    expected = sampling_frequency(matched_idxs, 21, 0.5)[0]
    # Five standard deviations of a binomial distribution, at most.
    assert (counts / 400 - expected).abs().max() <= 0.125
    for kind in (labels == 1, labels == 0):
        assert counts[kind].sum() / 400 == pytest.approx(expected[kind].sum().item(), rel=1e-5)
    assert (expected[labels == -1] == 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True},
        {"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 3.0, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5},
        {"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou"},
    ],
    ids=str,
)
def test_box_head_is_judged_by_its_own_loss_on_the_object(teacher_of, make_batch, changes):
    teacher, batch = teacher_of("FasterRCNN", changes), make_batch((3, 0, 2))
    heads = teacher.model.roi_heads
    heads.box_predictor.bbox_pred.weight.data.mul_(300)
    outputs, losses = observe(teacher, batch)
    features = [outputs.features[stride] for stride in (4, 8, 16, 32)]
    index = 0
    for image, record in enumerate(batch):
        for box, label in zip(record["instances"].gt_boxes, record["instances"].gt_classes):
            boxes = [Boxes(torch.zeros(0, 4)) for _ in batch]
            boxes[image] = Boxes(box[None])
            proposal = Instances(
                (64, 96), proposal_boxes=boxes[image], gt_boxes=boxes[image], gt_classes=label[None]
            )
            with torch.no_grad(), EventStorage():
                predictions = heads.box_predictor(heads.box_head(heads.box_pooler(features, boxes)))
                expected = heads.box_predictor.losses(predictions, [proposal])
            assert expected["loss_box_reg"] > 0
            torch.testing.assert_close(
                losses.roi[index], sum(expected.values()), rtol=1e-4, atol=1e-6
            )
            index += 1
    assert index == len(losses.roi) == 5


def test_a_box_head_with_sigmoid_sums_binary_losses_over_classes(teacher_of, make_batch):
    """What is not the box loss, against a loop over classes in float64."""
    teacher, batch = teacher_of("FasterRCNN"), make_batch((3, 0, 2))
    predictor, objects = teacher.model.roi_heads.box_predictor, objects_of(batch)
    predictor.loss_weight["loss_box_reg"] = 0.0
    predictor.use_sigmoid_ce = True
    outputs, losses = observe(teacher, batch)
    with torch.no_grad():
        boxes = objects.boxes.split(objects.counts)
        logits, _ = teacher.wrapper.score(outputs.features, boxes)
    for row, label, actual in zip(logits.double().numpy(), objects.classes, losses.roi):
        expected = 0.0
        for index, logit in enumerate(row[:-1]):  # the last one is the background's
            probability = 1 / (1 + np.exp(-logit))
            expected -= np.log(probability if index == label else 1 - probability)
        assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_anchors_that_leave_an_image_are_found_as_detectron2_finds_them():
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(-20, 90, (500, 2), generator=generator).float()
    anchors = torch.cat([low, low + torch.randint(1, 40, (500, 2), generator=generator)], 1)
    sizes = [(64, 96), (100, 50)]
    for threshold in (0, 7):
        expected = torch.stack([Boxes(anchors).inside_box(x, threshold) for x in sizes])
        assert 20 < expected.sum() < 980
        assert torch.equal(inside_images(anchors, sizes, threshold), expected)


def test_second_stage_is_shared_by_all_levels(teacher_of, make_batch):
    _, losses = observe(teacher_of("FasterRCNN"), make_batch((3, 0, 2)))
    without = replace(losses, roi=None)
    difference = level_loss(losses) - level_loss(without)
    torch.testing.assert_close(difference, losses.roi.mean().expand(5), rtol=1e-4, atol=1e-6)
    difference = image_loss(losses) - image_loss(without)
    expected = torch.stack([losses.roi[:3].mean(), torch.tensor(0.0), losses.roi[3:].mean()])
    torch.testing.assert_close(difference, expected[:, None].expand(3, 5), rtol=1e-4, atol=1e-6)


def test_hardest_background_against_sorting():
    generator = torch.Generator().manual_seed(0)
    levels = [LevelShape(8, 5, 6, 3), LevelShape(16, 2, 3, 1)]
    cls = torch.rand(2, 96, generator=generator)
    matched_idxs = torch.randint(IGNORED, 2, (2, 96), generator=generator)
    actual = hardest_background(cls, matched_idxs, levels, 10)
    for image in range(2):
        for level, part in enumerate((slice(0, 90), slice(90, 96))):
            negative = cls[image, part][matched_idxs[image, part] == BACKGROUND].double()
            expected = sum(sorted(negative.tolist(), reverse=True)[:10]) / 10
            assert actual[image, level].item() == pytest.approx(expected, rel=1e-5)


def weights_at_objects(losses, alpha=1.0):
    """Lowest and highest weight in the cells of each object, over all levels."""
    weights = AID(alpha=alpha, granularity="instance", relative=False).weights(losses)
    shown = smallest_objects(losses.objects, losses.levels)
    result = []
    for index in range(len(losses.objects.boxes)):
        values = torch.cat(
            [weights.maps[level.stride][:, 0][x == index] for level, x in zip(losses.levels, shown)]
        )
        result.append((values.min().item(), values.max().item()))
    return result


def rigged_box_head(teacher, verdict):
    """The box head says `verdict`, of K + 1, about everything; boxes stay as they are, and the
    RPN cannot decide.
    """
    predictor, rpn = teacher.model.roi_heads.box_predictor, teacher.model.proposal_generator
    first_stage = (rpn.rpn_head.objectness_logits, rpn.rpn_head.anchor_deltas)
    for layer in (predictor.cls_score, predictor.bbox_pred, *first_stage):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    predictor.cls_score.bias.data[verdict] = 10.0
    return teacher


def two_objects():
    """A small and a large object apart, of class 0 and 1."""
    boxes = torch.tensor([[8.0, 8, 40, 40], [60, 20, 124, 84]])
    instances = Instances((96, 128), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]))
    return [{"image": torch.zeros(3, 96, 128, dtype=torch.uint8), "instances": instances}]


@pytest.mark.parametrize("verdict,trusted", [(0, [True, False]), (1, [False, True])])
def test_faster_rcnn_is_not_trusted_on_an_object_that_it_misclassifies(
    teacher_of, verdict, trusted
):
    _, losses = observe(rigged_box_head(teacher_of("FasterRCNN"), verdict), two_objects())
    for (low, high), expected in zip(weights_at_objects(losses), trusted):
        assert low > 0.1 if expected else high < 1e-3


def test_faster_rcnn_is_not_trusted_on_an_object_that_it_misses(teacher_of):
    _, losses = observe(rigged_box_head(teacher_of("FasterRCNN"), 3), two_objects())
    assert losses.roi.tolist() == pytest.approx([10.0, 10.0], rel=1e-3)
    assert all(high < 1e-3 for _, high in weights_at_objects(losses))


def test_retinanet_is_not_trusted_on_an_object_that_it_misclassifies(teacher_of):
    """Logits by hand: object 0 is found, on object 1 the teacher says class 0."""
    teacher, batch = teacher_of("RetinaNet"), two_objects()
    outputs, losses = observe(teacher, batch)
    logits, deltas = ([x.clone() for x in maps] for maps in outputs.head_outputs)
    for per_level, matched_idxs in zip(logits, losses.split(losses.matched_idxs)):
        per_level.fill_(-8.0)
        by_class = per_level.view(1, -1, 3, *per_level.shape[-2:])
        by_class[:, :, 0][(matched_idxs >= 0).permute(0, 3, 1, 2)] = 8.0
    for x in deltas:
        x.zero_()
    losses = teacher.wrapper.judge(
        replace(outputs, head_outputs=[logits, deltas]), objects_of(batch)
    )
    assert losses.known_objects.all()
    cls = [losses.cls[losses.matched_idxs == index].mean() for index in range(2)]
    assert cls[0] < 1e-3 and cls[1] > 5
    assert weights_at_objects(losses, alpha=2.0)[1][1] < 1e-3


# --- both


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_a_false_alarm_lowers_the_weight_in_the_background_of_its_image_and_level(
    teacher_of, make_batch, detector
):
    teacher, batch = teacher_of(detector), make_batch((2, 2))
    outputs, before = observe(teacher, batch)
    level, image = 0, 1
    negative = before.split(before.matched_idxs)[level][image] == BACKGROUND
    row, column, anchor = negative.nonzero()[0].tolist()
    logits = [x.clone() for x in outputs.head_outputs[0]]
    channels = logits[level].shape[1] // negative.shape[-1]
    logits[level][image, anchor * channels, row, column] += 40
    raised = replace(outputs, head_outputs=[logits, outputs.head_outputs[1]])
    after = teacher.wrapper.judge(raised, objects_of(batch))

    higher = after.background > before.background + 1e-3
    assert higher.nonzero().tolist() == [[image, level]]
    outside = smallest_objects(before.objects, before.levels)[level][image] < 0
    old, new = (
        AID(alpha=0.5, granularity="instance", relative=False).weights(x).maps
        for x in (before, after)
    )
    stride = before.levels[level].stride
    assert (new[stride][image, 0][outside] < old[stride][image, 0][outside]).all()
    assert torch.equal(new[stride][image, 0][~outside], old[stride][image, 0][~outside])


def test_retinanet_background_is_the_negative_loss_per_positive_anchor(teacher_of, make_batch):
    """Over the batch D_bg is the negative loss over the positives of the level, as an image has it
    when all are alike.
    """
    teacher = teacher_of("RetinaNet")
    batch = make_batch((3,)) * 2
    _, losses = observe(teacher, batch)
    for level, (cls, matched_idxs) in enumerate(
        zip(losses.split(losses.cls), losses.split(losses.matched_idxs))
    ):
        num_positive = max((matched_idxs >= 0).sum().item(), 2)
        expected = cls[matched_idxs == BACKGROUND].double().sum().item() / num_positive
        for image in range(2):
            assert losses.background[image, level].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("wrapper", ["RetinaNet", "FasterRCNN"])
def test_ignore_regions_say_nothing(teacher_of, make_batch, wrapper):
    """Anchors with more than half of their area in a region count neither way; objects do."""
    teacher, batch = teacher_of(wrapper), make_batch((2, 2))
    region = torch.tensor([[0.0, 0, 96, 40]])
    instances = batch[1]["instances"]
    marked = Instances(
        instances.image_size,
        gt_boxes=Boxes(torch.cat([instances.gt_boxes.tensor, region])),
        gt_classes=torch.cat([instances.gt_classes, torch.tensor([-1])]),
    )
    outputs, plain = observe(teacher, batch)
    _, masked = observe(teacher, [batch[0], {**batch[1], "instances": marked}])

    wrapper = teacher.wrapper
    generator = teacher.model if wrapper.detector.__name__ == "RetinaNet" else None
    generator = generator or teacher.model.proposal_generator
    anchors = Boxes.cat(generator.anchor_generator(list(outputs.features.values())))
    x1, y1, x2, y2 = anchors.tensor.unbind(1)
    overlap = (x2.clamp(max=96) - x1.clamp(min=0)).clamp(min=0) * (
        y2.clamp(max=40) - y1.clamp(min=0)
    ).clamp(min=0)
    inside = overlap / ((x2 - x1) * (y2 - y1)) > 0.5
    silenced = inside & (plain.matched_idxs[1] == BACKGROUND)
    assert silenced.any()
    assert (masked.matched_idxs[1][silenced] == IGNORED).all()
    assert (masked.cls[1][silenced] == 0).all()
    assert torch.equal(masked.matched_idxs[1][~silenced], plain.matched_idxs[1][~silenced])
    assert torch.equal(masked.cls[1][~silenced], plain.cls[1][~silenced])
    assert torch.equal(masked.box, plain.box)
    assert torch.equal(masked.matched_idxs[0], plain.matched_idxs[0])


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)], ids=str)
@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_images_without_objects(teacher_of, make_batch, detector, counts):
    _, losses = observe(teacher_of(detector), make_batch(counts))
    for granularity in GRANULARITIES:
        for values in (
            AID(alpha=1.0, granularity=granularity, relative=False).weights(losses).maps.values()
        ):
            assert values.isfinite().all() and (values > 0).all() and (values <= 1).all()


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_an_object_without_area_is_judged(teacher_of, make_batch, detector):
    """A box can collapse under augmentation; data that is not filtered must not stop training."""
    batch = make_batch((1,))
    batch[0]["instances"].gt_boxes.tensor[0] = torch.tensor([20.0, 20.0, 20.0, 30.0])
    _, losses = observe(teacher_of(detector), batch)
    for granularity in GRANULARITIES:
        for values in (
            AID(alpha=1.0, granularity=granularity, relative=False).weights(losses).maps.values()
        ):
            assert values.isfinite().all() and (values > 0).all()


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_unreduced_losses_draw_no_random_numbers(teacher_of, make_batch, detector):
    teacher, batch = teacher_of(detector), make_batch((2, 1))
    before = torch.get_rng_state()
    observe(teacher, batch)
    assert torch.equal(before, torch.get_rng_state())


def test_dense_cls_losses_against_formulas(teacher_of, make_batch):
    """RPN: binary cross-entropy. RetinaNet: focal loss, alpha .25, gamma 2. In float64."""
    teacher, batch = teacher_of("FasterRCNN"), make_batch((2, 0))
    outputs, losses = observe(teacher, batch)
    logits = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in outputs.head_outputs[0]], 1)
    positive, known = losses.matched_idxs >= 0, losses.matched_idxs != IGNORED
    expected = torch.where(positive, F.softplus(-logits.double()), F.softplus(logits.double()))
    np.testing.assert_allclose(losses.cls, expected * known, rtol=1e-4, atol=1e-6)

    teacher = teacher_of("RetinaNet")
    outputs, losses = observe(teacher, batch)
    logits = torch.cat(
        [
            x.double().view(2, -1, 3, *x.shape[-2:]).permute(0, 3, 4, 1, 2).reshape(2, -1, 3)
            for x in outputs.head_outputs[0]
        ],
        1,
    )
    classes = objects_of(batch).classes
    target = torch.zeros_like(logits)
    for image, anchor in (losses.matched_idxs >= 0).nonzero().tolist():
        target[image, anchor, classes[losses.matched_idxs[image, anchor]]] = 1
    p = logits.sigmoid()
    focal = -target * 0.25 * (1 - p) ** 2 * p.log() - (1 - target) * 0.75 * p**2 * (1 - p).log()
    expected = focal.sum(-1) * (losses.matched_idxs != IGNORED)
    np.testing.assert_allclose(losses.cls, expected, rtol=1e-4, atol=1e-6)


def test_positive_anchors_overlap_their_object(teacher_of, make_batch):
    """Thresholds of the matchers: .5 in RetinaNet, .7 in the RPN, or the best of the object."""
    for detector, threshold in (("RetinaNet", 0.5), ("FasterRCNN", 0.7)):
        teacher, batch = teacher_of(detector), make_batch((3, 2))
        outputs, losses = observe(teacher, batch)
        matched_idxs = (
            teacher.model if detector == "RetinaNet" else teacher.model.proposal_generator
        )
        anchors = Boxes.cat(matched_idxs.anchor_generator(list(outputs.features.values())))
        objects = objects_of(batch)
        iou = pairwise_iou(Boxes(objects.boxes), anchors)
        for image, anchor in (losses.matched_idxs >= 0).nonzero().tolist():
            index = losses.matched_idxs[image, anchor]
            assert objects.image_index[index] == image
            best = iou[objects.image_index == image].max(1).values
            assert iou[index, anchor] >= min(threshold, best.min()) - 1e-6


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_anchors_are_matched_as_detectron2_does(low_quality, count):
    """Its Matcher, on the same overlaps; among them anchors of equal IoU and objects that none is
    near.
    """
    generator = torch.Generator().manual_seed(count)

    def random_boxes(n):
        corner = (20 * torch.rand(n, 2, generator=generator)).round()
        return torch.cat(
            [corner, corner + 4 + (8 * torch.rand(n, 2, generator=generator)).round()], 1
        )

    anchors, boxes = random_boxes(400), random_boxes(count)
    boxes[count - 1 : count] += 100
    matcher = Matcher([0.3, 0.6], [0, -1, 1], allow_low_quality_matches=low_quality)
    objects = Objects(boxes, torch.zeros(count, dtype=torch.int64), [count], [torch.zeros(0, 4)])
    (matched_idxs,) = match_by_iou(matcher, anchors, objects)
    index, label = matcher(pairwise_iou(Boxes(boxes), Boxes(anchors)))
    assert torch.equal(matched_idxs >= 0, label == 1)
    assert torch.equal(matched_idxs == BACKGROUND, label == 0)
    assert torch.equal(matched_idxs == IGNORED, label == -1)
    assert torch.equal(matched_idxs[matched_idxs >= 0], index[label == 1])
