"""GFL against plain loops in float64, its losses as a teacher, and training."""

import math

import numpy as np
import pytest
import torch
from helpers.tiny import K, dense_cfg, instances
from helpers.training import JUDGING
from torch import nn

from aid_d2 import DistilledDetector
from aid_d2.aid import AID, GRANULARITIES, image_loss, level_loss, object_loss
from aid_d2.distillers import build_distillers
from aid_d2.layers.distributed import mean_over_gpus
from aid_d2.modeling.context import pair_levels
from aid_d2.modeling.gfl.atss import atss_match
from aid_d2.modeling.gfl.losses import (
    BoxDistribution,
    distribution_focal_loss,
    quality_focal_loss,
)
from aid_d2.modeling.teacher import Teacher
from aid_d2.modeling.wrappers import wrap
from aid_d2.modeling.wrappers.gfl import GFLWrapper
from aid_d2.structures import BACKGROUND, IGNORED, Objects
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage

BINS, STRIDES = 17, (8, 16, 32, 64, 128)


def tiny_cfg():
    return dense_cfg("GFL", num_convs=1)


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return build_model(tiny_cfg())


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def grids(height, width):
    return [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]


def random_predictions(seed, num_images, height, width, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        [
            spread * torch.randn(num_images, channels, h, w, generator=generator)
            for h, w in grids(height, width)
        ]
        for channels in (K, 4 * BINS)
    )


def maps_like(predictions):
    return {s: x.new_zeros(len(x), 32, *x.shape[-2:]) for s, x in zip(STRIDES, predictions[0])}


# ------------------------------------------------------------------------------------------------
# Independent reference of methods and losses: plain loops, float64


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cross_entropy(score, target):
    return -(target * math.log(score) + (1 - target) * math.log1p(-score))


def softmax(values):
    e = np.exp(np.asarray(values, dtype=np.float64) - np.max(values))
    return e / e.sum()


def overlap(a, b):
    """IoU and GIoU."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / union, both / union - (hull - union) / hull


def reference_losses(predictions, objects):
    """The three losses of GFL on a batch; objects: per image instances."""
    logits, distributions = ([x.double().numpy() for x in maps] for maps in predictions)
    qfl = giou = dfl = sum_weight = 0.0
    num_positive = 0
    for n, truth in enumerate(objects):
        boxes, classes = truth.gt_boxes.tensor, truth.gt_classes.tolist()
        anchors = [
            [x * s - 4 * s, y * s - 4 * s, x * s + 4 * s, y * s + 4 * s]
            for s, maps in zip(STRIDES, logits)
            for y in range(maps.shape[2])
            for x in range(maps.shape[3])
        ]
        sizes = [x.shape[2] * x.shape[3] for x in logits]
        matched_idxs = iter(atss_match(torch.tensor(anchors).float(), sizes, boxes).tolist())
        for stride, cls, box in zip(STRIDES, logits, distributions):
            for y in range(cls.shape[2]):
                for x in range(cls.shape[3]):
                    g = next(matched_idxs)
                    scores = [sigmoid(v) for v in cls[n, :, y, x]]
                    target = [0.0] * K
                    if g >= 0:
                        sides = box[n, :, y, x].reshape(4, BINS)
                        left, top, right, bottom = (
                            stride * float(softmax(side) @ np.arange(BINS)) for side in sides
                        )
                        cx, cy = x * stride, y * stride
                        gt = boxes[g].double().tolist()
                        iou, generalized = overlap(
                            [cx - left, cy - top, cx + right, cy + bottom], gt
                        )
                        target[classes[g]] = iou
                        weight = max(scores)
                        distances = (cx - gt[0], cy - gt[1], gt[2] - cx, gt[3] - cy)
                        for side, distance in zip(sides, distances):
                            t = min(max(distance / stride, 0.0), BINS - 1 - 0.1)
                            i = int(t)
                            p = softmax(side)
                            dfl += (
                                -weight
                                * ((i + 1 - t) * math.log(p[i]) + (t - i) * math.log(p[i + 1]))
                                / 4
                            )
                        giou += weight * (1 - generalized)
                        sum_weight += weight
                        num_positive += 1
                    for s, t in zip(scores, target):
                        qfl += abs(t - s) ** 2 * cross_entropy(s, t)
    return {
        "loss_cls": qfl / max(num_positive, 1),
        "loss_box_reg": 2.0 * giou / max(sum_weight, 1),
        "loss_dfl": 0.25 * dfl / max(sum_weight, 1),
    }


SCENES = {
    "several": [
        instances([[10.3, 12.1, 60.2, 70.9], [50.2, 20.4, 88.1, 50.2]], [0, 2]),
        instances([[5.1, 40.3, 44.7, 90.2]], [1]),
    ],
    "no objects": [instances([], []), instances([], [])],
    "one empty image": [instances([], []), instances([[20.1, 12.2, 70.3, 81.4]], [2])],
    "smaller than a stride": [instances([[30.1, 29.2, 36.4, 35.3]], [1])],
    "larger than the image": [instances([[-700.3, -640.1, 880.2, 950.7]], [0])],
    "identical": [instances([[10.2, 15.1, 71.3, 66.4]] * 2, [1, 2])],
}


# ------------------------------------------------------------------------------------------------
# Losses


def test_quality_focal_loss_equals_plain_loops():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(50, generator=generator)
    quality = torch.rand(50, generator=generator)
    quality[:20] = 0
    quality[20:25] = 1
    expected = [
        abs(y - sigmoid(x)) ** 2 * cross_entropy(sigmoid(x), y)
        for x, y in zip(logits.double().tolist(), quality.double().tolist())
    ]
    torch.testing.assert_close(
        quality_focal_loss(logits, quality), torch.tensor(expected), rtol=1e-4, atol=1e-6
    )


def test_quality_focal_loss_is_finite_where_saturated():
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    loss = quality_focal_loss(logits, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.0, 200.0, 200.0]))
    assert logits.grad.isfinite().all()


def test_distribution_focal_loss_equals_plain_loops():
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(40, BINS, generator=generator)
    target = 15.9 * torch.rand(40, generator=generator)
    target[:3] = torch.tensor([0.0, 7.0, 15.9])
    expected = []
    for x, y in zip(logits.double().numpy(), target.double().tolist()):
        p, i = softmax(x), int(y)
        expected.append(-(i + 1 - y) * math.log(p[i]) - (y - i) * math.log(p[i + 1]))
    torch.testing.assert_close(
        distribution_focal_loss(logits, target), torch.tensor(expected).float()
    )


def test_gradients_of_both_losses():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True)
    quality = torch.rand(6, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, quality), logits)
    bins = torch.randn(6, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    target = 3.9 * torch.rand(6, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, target), bins)


@pytest.mark.parametrize("scene", SCENES)
def test_training_losses_equal_plain_loops(model, scene):
    objects = SCENES[scene]
    predictions = random_predictions(3, len(objects), 96, 96)
    maps = list(maps_like(predictions).values())
    losses = model.forward_training(None, maps, predictions, objects)
    expected = reference_losses(predictions, objects)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_quality_and_weight_carry_no_gradient(model):
    predictions = random_predictions(4, 2, 96, 96)
    for maps in predictions:
        for x in maps:
            x.requires_grad_()
    maps = list(maps_like(predictions).values())
    losses = model.forward_training(None, maps, predictions, SCENES["several"])
    box = losses["loss_box_reg"] + losses["loss_dfl"]
    to_scores = torch.autograd.grad(box, predictions[0], allow_unused=True, retain_graph=True)
    to_boxes = torch.autograd.grad(losses["loss_cls"], predictions[1], allow_unused=True)
    assert all(g is None for g in (*to_scores, *to_boxes))


def test_without_objects_every_parameter_has_a_gradient():
    model = tiny_model().train()
    image = torch.zeros(3, 64, 64)
    losses = model([{"image": image, "instances": instances([], [])}])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_ignored_anchors_have_no_loss(model):
    predictions = random_predictions(5, 1, 96, 96)
    anchors = model.anchor_generator(list(maps_like(predictions).values()))
    labels, boxes = model.label_anchors(anchors, SCENES["several"][:1])
    labels[0][:50] = -1
    logits, distributions = (
        torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1) for maps in predictions
    )
    losses = model.anchor_losses(
        Boxes.cat(anchors).tensor, logits, distributions, torch.stack(labels), torch.stack(boxes)
    )
    assert (losses.qfl[0, :50] == 0).all() and (losses.qfl[0, 50:] > 0).all()
    assert not losses.positive[0, :50].any()


def test_divisors_are_means_over_gpus(monkeypatch):
    values = torch.tensor([6.0, 3.0])
    assert torch.equal(mean_over_gpus(values), values)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    # The other two processes hold nothing.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: None)
    assert torch.equal(mean_over_gpus(values), torch.tensor([2.0, 1.0]))


# ------------------------------------------------------------------------------------------------
# Architecture and inference


def test_anchors_are_centred_at_multiples_of_the_stride(model):
    maps = [torch.zeros(1, 32, h, w) for h, w in grids(96, 160)]
    for stride, x, anchors in zip(STRIDES, maps, model.anchor_generator(maps)):
        centres = anchors.get_centers().view(*x.shape[-2:], 2)
        for i in range(x.shape[-2]):
            for j in range(x.shape[-1]):
                assert centres[i, j].tolist() == [j * stride, i * stride]
        assert (anchors.tensor[:, 2:] - anchors.tensor[:, :2] == 8 * stride).all()


def test_head_starts_as_published(model):
    head = model.head
    assert head.cls_score.bias.tolist() == pytest.approx([-4.595] * K, abs=1e-3)
    assert head.box_distribution.out_channels == 68
    for layer in (head.cls_score, head.box_distribution):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert [x.item() for x in head.scales] == [1.0] * 5


@pytest.mark.parametrize("channels, groups", [(256, 32), (128, 16), (32, 4), (48, 2), (20, 2)])
def test_group_norm_fits_every_width(channels, groups):
    cfg = tiny_cfg()
    cfg.MODEL.FPN.OUT_CHANNELS = channels
    head = build_model(cfg).head
    norms = [x for x in head.modules() if isinstance(x, nn.GroupNorm)]
    assert len(norms) == 2 and all(x.num_groups == groups for x in norms)


def test_box_distribution_goes_there_and_back():
    transform = BoxDistribution(BINS - 1)
    anchors = torch.tensor([[-32.0, -32.0, 32.0, 32.0], [64.0, 0.0, 192.0, 128.0]])
    boxes = torch.tensor([[-8.0, -16.0, 24.0, 40.0], [100.0, 48.0, 160.0, 80.0]])
    distances = transform.get_deltas(anchors, boxes)
    assert distances[0].tolist() == [1, 2, 3, 5]
    # Two neighbouring bins share the probability so that their mean is the distance.
    low = distances.floor().long()
    probability = torch.zeros(2, 4, BINS)
    probability.scatter_(2, low[..., None], (low + 1 - distances)[..., None])
    probability.scatter_(2, low[..., None] + 1, (distances - low)[..., None])
    logits = probability.clamp(min=1e-30).log().flatten(1)
    torch.testing.assert_close(transform.apply_deltas(logits, anchors), boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(transform.apply_deltas(logits, anchors), boxes)


def test_inference_equals_a_slow_loop(model, monkeypatch):
    predictions = random_predictions(6, 2, 96, 96, spread=3.0)
    sizes = [(96, 96), (80, 72)]
    images = ImageList(torch.zeros(2, 3, 96, 96), sizes)
    monkeypatch.setattr(model, "test_topk_candidates", 20)
    maps = list(maps_like(predictions).values())
    results = model.forward_inference(images, maps, predictions)
    for n, result in enumerate(results):
        boxes, scores, classes = [], [], []
        for stride, cls, box in zip(STRIDES, *predictions):
            found = []
            for y in range(cls.shape[2]):
                for x in range(cls.shape[3]):
                    for k in range(K):
                        score = sigmoid(cls[n, k, y, x].item())
                        if score > 0.05:
                            found.append((score, x, y, k))
            for score, x, y, k in sorted(found, reverse=True)[:20]:
                sides = box[n, :, y, x].double().numpy().reshape(4, BINS)
                left, top, right, bottom = (
                    stride * float(softmax(side) @ np.arange(BINS)) for side in sides
                )
                boxes.append(
                    [x * stride - left, y * stride - top, x * stride + right, y * stride + bottom]
                )
                scores.append(score)
                classes.append(k)
        boxes, scores, classes = map(torch.tensor, (boxes, scores, classes))
        keep = batched_nms(boxes.float(), scores.float(), classes, 0.6)[:100]
        assert len(keep) > 20
        expected = boxes[keep].float()
        torch.testing.assert_close(result.pred_boxes.tensor, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(result.scores, scores[keep].float())
        assert torch.equal(result.pred_classes, classes[keep])
        assert result.image_size == sizes[n]


def test_inference_leaves_the_predictions_alone(model):
    predictions = random_predictions(7, 1, 64, 64)
    before = [x.clone() for maps in predictions for x in maps]
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    model.forward_inference(images, list(maps_like(predictions).values()), predictions)
    assert all(torch.equal(a, b) for a, b in zip(before, [x for m in predictions for x in m]))


# ------------------------------------------------------------------------------------------------
# Training


def rectangles(seed, size=96):
    """An image with a red, a green and a blue rectangle (classes 0, 1, 2) on noise."""
    generator = torch.Generator().manual_seed(seed)
    image = 100 + 30 * torch.rand(3, size, size, generator=generator)
    boxes = []
    for color in range(3):
        w, h = (24 + 16 * torch.rand(2, generator=generator)).long().tolist()
        # Each in a quarter of its own.
        x = 48 * (color % 2) + int((47 - w) * torch.rand((), generator=generator))
        y = 48 * (color // 2) + int((47 - h) * torch.rand((), generator=generator))
        image[:, y : y + h, x : x + w] = 0
        image[color, y : y + h, x : x + w] = 255
        boxes.append([x, y, x + w, y + h])
    return {"image": image, "instances": instances(boxes, [0, 1, 2], (size, size))}


def average_precision(model, batch, threshold=0.5):
    """Mean over classes of the all-point AP at one IoU."""
    with torch.no_grad():
        results = [x["instances"] for x in model(batch)]
    precisions = []
    for k in range(K):
        found = sorted(
            (
                (score, n, box)
                for n, result in enumerate(results)
                for score, box, c in zip(
                    result.scores.tolist(),
                    result.pred_boxes.tensor.tolist(),
                    result.pred_classes.tolist(),
                )
                if c == k
            ),
            reverse=True,
        )
        open_objects = {
            (n, i): box
            for n, x in enumerate(batch)
            for i, box in enumerate(x["instances"].gt_boxes.tensor.tolist())
            if x["instances"].gt_classes[i] == k
        }
        total, hits, curve = len(open_objects), 0, []
        for rank, (_, n, box) in enumerate(found, 1):
            match = [
                key
                for key, gt in open_objects.items()
                if key[0] == n and overlap(box, gt)[0] >= threshold
            ]
            if match:
                del open_objects[match[0]]
                hits += 1
                curve.append(hits / rank)
        precisions.append(sum(max(curve[i:]) for i in range(len(curve))) / total)
    return sum(precisions) / K


def test_overfits_ten_images():
    model = tiny_model().train()
    batch = [rectangles(seed) for seed in range(10)]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(80):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert average_precision(model.eval(), batch) > 0.95
    assert average_precision(model, batch, threshold=0.75) > 0.8


# ------------------------------------------------------------------------------------------------
# As a teacher


def unreduced_losses(model, predictions, truth):
    wrapper = wrap(model)
    objects = Objects.from_inputs([{"instances": x} for x in truth], torch.device("cpu"))
    return wrapper.unreduced_losses(maps_like(predictions), predictions, objects)


@pytest.mark.parametrize("gpus", [1, 3])
@pytest.mark.parametrize("scene", SCENES)
def test_levels_add_up_to_the_detectors_own_loss(model, scene, gpus, monkeypatch):
    """With several GPUs, of which the others hold nothing, its divisors are means over them."""
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: None)
    truth = SCENES[scene]
    predictions = random_predictions(8, len(truth), 96, 96)
    own = model.forward_training(None, list(maps_like(predictions).values()), predictions, truth)
    losses = unreduced_losses(model, predictions, truth)
    torch.testing.assert_close(level_loss(losses).sum(), sum(own.values()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scene", SCENES)
def test_levels_of_an_image_add_up_to_its_own_loss(model, scene):
    truth = SCENES[scene]
    predictions = random_predictions(9, len(truth), 96, 96)
    per_image = image_loss(unreduced_losses(model, predictions, truth)).sum(1)
    for n in range(len(truth)):
        alone = [[x[n : n + 1] for x in maps] for maps in predictions]
        own = model.forward_training(None, list(maps_like(alone).values()), alone, truth[n : n + 1])
        torch.testing.assert_close(per_image[n], sum(own.values()), rtol=1e-4, atol=1e-6)


def test_wrapper_takes_the_detectors_assignment_and_ignores_regions(model):
    # The region is smaller than every anchor.
    truth = instances([[10.3, 12.1, 60.2, 70.9], [62.0, 0.0, 94.0, 30.0]], [1, -1])
    predictions = random_predictions(10, 1, 96, 96)
    losses = unreduced_losses(model, predictions, [truth])
    anchors = model.anchor_generator(list(maps_like(predictions).values()))
    labels, _ = model.label_anchors(anchors, [truth[:1]])
    assert torch.equal(losses.matched_idxs[0] == 0, labels[0] == 1)
    ignored = losses.matched_idxs == IGNORED
    finest = torch.zeros(12, 12, dtype=torch.bool)
    finest[1:4, 8:12] = True  # y 8, 16, 24; x 64, 72, 80, 88
    assert torch.equal(losses.split(ignored)[0][0, ..., 0], finest)
    assert (losses.matched_idxs == BACKGROUND).any()
    assert (losses.cls[ignored] == 0).all() and (losses.cls[~ignored] > 0).all()
    assert losses.background.shape == (1, 5)


def predictions_for(truth, score, offset=0.0):
    """What a detector says that gives each anchor of an object its box, moved, and a score."""
    logits = [torch.full((1, K, h, w), -7.0) for h, w in grids(96, 96)]
    anchors = [
        torch.tensor([[[x * s, y * s] for x in range(w)] for y in range(h)]).float()
        for s, (h, w) in zip(STRIDES, grids(96, 96))
    ]
    box, label = truth.gt_boxes.tensor[0] + offset, truth.gt_classes[0]
    distributions = []
    for stride, centre, cls in zip(STRIDES, anchors, logits):
        distances = torch.cat([centre - box[:2], box[2:] - centre], -1) / stride
        distances = distances.clamp(0, 15.9)
        bins = torch.arange(BINS)
        close = (1 - (distances[..., None] - bins).abs()).clamp(min=1e-12).log()
        distributions.append(close.flatten(2).permute(2, 0, 1)[None])
        cls[:, label] = torch.where((distances > 0.1).all(-1), score, cls[:, label])
    return logits, distributions


def test_an_object_the_teacher_misses_is_not_trusted(model):
    truth = [instances([[14.0, 14.0, 82.0, 82.0]], [1])]
    found = predictions_for(truth[0], score=6.0)
    # Everywhere a low score and a box far off: its quality, the target of the score, is low too.
    missed = predictions_for(truth[0], score=-4.6, offset=600.0)
    weights, own = {}, {}
    for name, predictions in (("found", found), ("missed", missed)):
        losses = unreduced_losses(model, predictions, truth)
        maps = AID(alpha=1.0, granularity="instance", relative=False).weights(losses).maps
        weights[name] = maps[8][0, 0, 6, 6].item()
        # What GFL's own loss would have said of the object: its mean over the positive anchors.
        positive = losses.matched_idxs >= 0
        own_loss = (losses.factor * (losses.cls + losses.box))[positive].mean()
        own[name] = torch.exp(-own_loss).item()
    # Found: 1.0 by hard labels, 0.87 by GFL's own loss. Missed: 0.0003 and 0.93.
    assert own["missed"] > 0.9, own
    assert weights["missed"] < 0.05, weights
    assert weights["found"] > 0.9, weights


# ------------------------------------------------------------------------------------------------
# In distillation


def distilled(granularity, relative=False):
    cfg = tiny_cfg()
    student, teacher = tiny_model(1), Teacher(tiny_model(2), "RGB")
    context = pair_levels(wrap(student), teacher.wrapper)
    assert [pair.stride for pair in context.pairs] == list(STRIDES)
    return DistilledDetector(
        student=student,
        teacher=teacher,
        distillers=build_distillers(cfg, context),
        context=context,
        aid=AID(alpha=0.5, granularity=granularity, relative=relative),
        input_format="RGB",
    )


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_distillation_step(granularity, relative):
    model = distilled(granularity, relative).train()
    batch = [rectangles(0), {"image": torch.zeros(3, 64, 96), "instances": instances([], [])}]
    with EventStorage(JUDGING):
        losses = model(batch)
    sum(losses.values()).backward()
    assert {"loss_cls", "loss_box_reg", "loss_dfl"} < losses.keys()
    assert all(x.isfinite() for x in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_distillation_step_in_half_precision():
    model = distilled("instance").train()
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([rectangles(0), rectangles(1)])
    sum(losses.values()).backward()
    assert all(x.isfinite() and x.dtype == torch.float32 for x in losses.values())
    model.eval().student.test_score_thresh = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = model([rectangles(0)])[0]["instances"]
    assert result.pred_boxes.tensor.dtype == result.scores.dtype == torch.float32


def test_checkpoint_of_a_distilled_student_loads_in_the_plain_detector():
    model = distilled("instance")
    plain = tiny_model(5)
    result = plain.load_state_dict(model.state_dict(), strict=False)
    assert not result.missing_keys
    assert all(key.startswith("distiller.") for key in result.unexpected_keys)
    batch = [rectangles(0)]
    with torch.no_grad():
        expected, found = (m.eval()(batch)[0]["instances"] for m in (model.student, plain))
    assert torch.equal(expected.scores, found.scores)


def test_object_losses_are_those_of_hard_labels(model):
    truth = SCENES["several"][:1]
    predictions = random_predictions(11, 1, 96, 96)
    losses = unreduced_losses(model, predictions, truth)
    loss, known = object_loss(losses), losses.known_objects
    assert known.all()
    cls, box = (torch.cat([x[0].flatten(1).T for x in maps]).double() for maps in predictions)
    anchors = Boxes.cat(model.anchor_generator(list(maps_like(predictions).values()))).tensor
    for g, (gt, label) in enumerate(zip(truth[0].gt_boxes.tensor.tolist(), (0, 2))):
        values = []
        for r in (losses.matched_idxs[0] == g).nonzero().flatten().tolist():
            value = 0.0
            for k, x in enumerate(cls[r].tolist()):
                y = float(k == label)
                value += (y - sigmoid(x)) ** 2 * cross_entropy(sigmoid(x), y)
            a = anchors[r].tolist()
            cx, cy, stride = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2, (a[2] - a[0]) / 8
            left, top, right, bottom = (
                stride * float(softmax(side) @ np.arange(BINS))
                for side in box[r].numpy().reshape(4, BINS)
            )
            value += 1 - overlap([cx - left, cy - top, cx + right, cy + bottom], gt)[1]
            values.append(value)
        assert loss[g].item() == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_wrapper_is_found(model):
    wrapper = wrap(model)
    assert isinstance(wrapper, GFLWrapper)
    assert wrapper.num_classes == K and wrapper.head is model.head
    assert [level.stride for level in wrapper.levels] == list(STRIDES)
