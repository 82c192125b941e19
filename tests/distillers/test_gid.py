"""GID against its formulas in NumPy, one instance or pair at a time, float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.toy import (
    as_batch,
    build,
    constant_weights,
    context,
    maps,
    rand,
    random_weights,
    shake,
)

from aid_d2.distillers.gid import (
    GID,
    box_deltas,
    classification_loss,
    clip_boxes,
    disagreement,
    feature_loss,
    instance_kinds,
    regression_loss,
    relation_loss,
    relative_distances,
    select_instances,
)
from aid_d2.layers.matching import match_by_iou
from aid_d2.modeling.gfl.losses import BoxDistribution
from aid_d2.structures import (
    DensePredictions,
    DetectorOutputs,
    DistillWeights,
    LevelShape,
    Objects,
    pool_boxes,
)
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher

PARTS = {"feature": 5e-4, "relation": 40.0, "cls": 0.1, "box": 1.0}
SIZES = {8: (6, 8), 16: (3, 4)}
IMAGE = (48, 64)
# The second image is padded on the right and below.
IMAGE_SIZES = [IMAGE, (40, 48)]
K = 3
LEVELS = [LevelShape(stride, *size, 2) for stride, size in SIZES.items()]
MATCHER = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def iou(a, b):
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = max(width, 0) * max(height, 0)
    return inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter)


def greedy_nms(scores, boxes, threshold, count):
    """Of one image, over all boxes that are wide and high enough."""
    kept = []
    for r in np.argsort(-scores, kind="stable"):
        if min(boxes[r, 2:] - boxes[r, :2]) < 1 or len(kept) == count:
            continue
        if all(iou(boxes[r], boxes[k]) <= threshold for k in kept):
            kept.append(r)
    return kept


def random_boxes(*shape, seed=0, scale=10.0):
    """Boxes of all sizes, some of them partly or wholly outside an image."""
    centre = rand(*shape, 2, seed=seed) * 30 + 30
    half = (rand(*shape, 2, seed=seed + 1).exp() * scale).clamp(min=0.1)
    return torch.cat([centre - half, centre + half], dim=-1)


# --- Selection


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_disagreement_takes_the_box_of_the_higher_score(scale):
    s, t = scale * rand(2, 7, 3, seed=1), scale * rand(2, 7, 3, seed=2)
    s[0, 0] = t[0, 0]
    boxes = random_boxes(2, 7, seed=3), random_boxes(2, 7, seed=5)
    scores, chosen = disagreement(s, t, *boxes)
    for n, r in np.ndindex(2, 7):
        p_s, p_t = sigmoid(s[n, r].numpy()), sigmoid(t[n, r].numpy())
        assert scores[n, r].item() == pytest.approx(max(abs(p_t - p_s)), rel=1e-10, abs=1e-300)
        assert torch.equal(chosen[n, r], boxes[int(max(p_t) > max(p_s))][n, r])
    assert scores[0, 0] == 0 and torch.equal(chosen[0, 0], boxes[0][0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_scores_are_finite(dtype):
    s, t = torch.tensor([[[1e4, -1e4]]]).to(dtype), torch.tensor([[[-100.0, -100.0]]]).to(dtype)
    scores, _ = disagreement(s, t, torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
    assert scores.tolist() == [[1.0]]


def test_boxes_are_clipped_to_their_image():
    boxes = torch.tensor([[-5.0, -6.0, 100.0, 200.0], [50.0, 45.0, 60.0, 47.0]]).expand(2, 2, 4)
    clipped = clip_boxes(boxes, IMAGE_SIZES)
    assert clipped[0].tolist() == [[0, 0, 64, 48], [50, 45, 60, 47]]
    assert clipped[1].tolist() == [[0, 0, 48, 40], [48, 40, 48, 40]]


@pytest.mark.parametrize("count", [1, 3, 10, 1000])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_selection_against_greedy_nms(threshold, count):
    scores = rand(2, 200).sigmoid()
    boxes = clip_boxes(random_boxes(2, 200), IMAGE_SIZES)
    selected = select_instances(scores, boxes, threshold, count, candidates=200)
    for n in range(2):
        expected = greedy_nms(scores[n].numpy(), boxes[n].numpy(), threshold, count)
        assert len(expected) > 0
        assert selected[n].tolist() == expected


@pytest.mark.parametrize("candidates", [1, 5, 40])
def test_fewer_candidates_give_the_beginning_of_the_selection(candidates):
    scores = rand(2, 200).sigmoid()
    boxes = clip_boxes(random_boxes(2, 200), IMAGE_SIZES)
    full = select_instances(scores, boxes, 0.3, 10, candidates=200)
    few = select_instances(scores, boxes, 0.3, 10, candidates)
    for a, b in zip(few, full):
        assert 0 < len(a) <= len(b) and torch.equal(a, b[: len(a)])


def test_boxes_without_extent_are_no_instances():
    scores = torch.tensor([[0.9, 0.5, 0.8, 0.7], [0.9, 0.5, 0.8, 0.7]])
    boxes = torch.tensor([[0, 0, 0.5, 40], [0, 0, 9, 9], [48, 0, 48, 9], [5, 5, 3, 3.0]])
    boxes = torch.stack([boxes, boxes * 0])
    assert [x.tolist() for x in select_instances(scores, boxes, 0.3, 10, 100)] == [[1], []]


def test_boxes_that_are_not_finite_are_no_instances():
    boxes = torch.tensor([[0, 0, 9, 9], [math.nan] * 4, [0, 0, math.nan, 9]])[None]
    selected = select_instances(torch.tensor([[0.1, 0.9, 0.8]]), boxes, 0.3, 10, 100)
    assert selected[0].tolist() == [0]


def test_kinds_of_instances():
    objects = torch.tensor([[0, 0, 40, 40], [38, 0, 60, 40.0]])
    boxes = torch.tensor(
        [
            [0, 0, 40, 40],  # an object
            [5, 5, 15, 15],  # inside one
            [30, 10, 50, 30],  # half in each
            [0, 30, 10, 44],  # 10 / 14 inside
            [0, 37, 10, 47],  # just at 3 / 10
            [0, 38, 10, 48],  # 2 / 10
            [100, 100, 110, 110],
        ],
        dtype=torch.float32,
    )
    positive = torch.tensor([True] + [False] * 6)
    kinds = instance_kinds(boxes, positive, objects)
    kinds = {name: x.nonzero().flatten().tolist() for name, x in kinds.items()}
    assert kinds == {"positive": [0], "semi_positive": [1, 3], "negative": [5, 6]}
    without = instance_kinds(boxes, torch.zeros(7, dtype=torch.bool), objects[:0])
    assert [x.sum().item() for x in without.values()] == [0, 0, 7]


# --- Losses


def numpy_distances(x):
    n = len(x)
    d = np.zeros((n, n))
    for i, j in np.ndindex(n, n):
        if i != j:
            d[i, j] = math.sqrt(max(np.sum((x[i] - x[j]) ** 2), 1e-12))
    return d / (d.sum() / (n * n - n))


def numpy_feature(s, t, w):
    n, _, height, width = s.shape
    return sum(w[i] * np.sum((t[i] - s[i]) ** 2) for i in range(n)) / (max(n, 1) * height * width)


def numpy_relation(s, t, w):
    n = len(s)
    if n < 3:
        return 0.0
    s, t = numpy_distances(s.reshape(n, -1)), numpy_distances(t.reshape(n, -1))
    total = 0.0
    for i, j in np.ndindex(n, n):
        e = abs(s[i, j] - t[i, j])
        total += min(w[i], w[j]) * (e * e / 2 if e < 1 else e - 0.5)
    return total / (n * n - n)


def numpy_cls(s, t, w):
    """-(p log q + (1-p) log(1-q)), the logarithms of sigmoids in a form that does not overflow."""
    p = sigmoid(t)
    log_q, log_not_q = -np.logaddexp(0, -s), -np.logaddexp(0, s)
    return np.sum(w[:, None] * -(p * log_q + (1 - p) * log_not_q)) / max(len(s), 1)


def numpy_box(s, t, w):
    return sum(w[i] * np.abs(s[i] - t[i]).sum() for i in range(len(s))) / max(len(s), 1)


LOSSES = {
    "feature": (feature_loss, numpy_feature, (4, 3, 2)),
    "relation": (relation_loss, numpy_relation, (24,)),
    "cls": (classification_loss, numpy_cls, (3,)),
    "box": (regression_loss, numpy_box, (4,)),
}
every_loss = pytest.mark.parametrize("part", LOSSES)


def inputs(part, n, scale=1.0):
    shape = LOSSES[part][2]
    s, t = (scale * rand(n, *shape, seed=seed) for seed in (1, 2))
    return s, t, rand(n, seed=3).sigmoid()


@every_loss
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 9])
def test_loss_against_numpy(part, n, scale):
    loss, reference, _ = LOSSES[part]
    s, t, w = inputs(part, n, scale)
    s.requires_grad_()
    actual = loss(s, t, w)
    expected = reference(s.detach().numpy(), t.numpy(), w.numpy())
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    actual.backward()
    assert s.grad.isfinite().all()
    assert n < 3 or s.grad.abs().sum() > 0 or (part, scale) == ("cls", 1e4)


@every_loss
def test_gradients(part):
    s, t, w = inputs(part, 4)
    loss = LOSSES[part][0]
    assert torch.autograd.gradcheck(lambda x: loss(x, t, w), s.requires_grad_())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(part, dtype):
    s, t, w = (x.to(dtype) for x in inputs(part, 5, scale=10.0))
    s.requires_grad_()
    loss = LOSSES[part][0](s, t, w)
    try:
        loss.backward()
    except RuntimeError as error:
        if "not implemented for 'Half'" not in str(error):
            raise
        pytest.skip(f"torch {torch.__version__} lacks it on a CPU: {error}")
    assert loss.isfinite() and s.grad.isfinite().all()


@every_loss
def test_gradients_of_saturated_values_are_finite(part):
    shape = LOSSES[part][2]
    s = torch.tensor([1e4, -1e4, 0.0, 65504.0]).view(4, *[1] * len(shape)).repeat(1, *shape)
    t = torch.tensor([-1e4, -1e4, 65504.0, 65504.0]).view(4, *[1] * len(shape)).repeat(1, *shape)
    s.requires_grad_()
    loss = LOSSES[part][0](s, t, torch.ones(4))
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_relation_of_equal_instances(value):
    """No distance at all: psi is the clamped one, and nothing pulls."""
    s = torch.full((5, 24), value, requires_grad=True)
    loss = relation_loss(s, rand(5, 24).float(), torch.ones(5))
    loss.backward()
    expected = numpy_relation(np.zeros((5, 24)), rand(5, 24).float().numpy(), np.ones(5))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (s.grad == 0).all()


def test_distances_of_near_instances_far_from_the_origin():
    """In float32 the squares, 1e10, would leave nothing of distances of 1e-1."""
    x = (1e4 + 0.1 * rand(6, 100)).float()
    expected = numpy_distances(x.double().numpy())
    np.testing.assert_allclose(relative_distances(x).numpy(), expected, rtol=1e-5)


def test_relation_knows_no_scale():
    s, t, w = inputs("relation", 6)
    once, scaled = relation_loss(s, t, w), relation_loss(7 * s + 2, t, w)
    assert scaled.item() == pytest.approx(once.item(), rel=1e-9)
    assert relation_loss(3 * t, t, w).item() == pytest.approx(0, abs=1e-25)


# --- Deltas of a box


def test_deltas_are_the_raw_output():
    predictions = make_dense(1)
    image, anchor = torch.tensor([0, 1, 1]), torch.tensor([5, 0, 100])
    assert torch.equal(
        box_deltas(predictions, image, anchor), predictions.regression[image, anchor]
    )


def test_deltas_of_distributions_are_expected_distances():
    regression = 5 * rand(2, 3, 4 * 17)
    regression[0, 0] = 1e4 * rand(68).sign()
    centre = torch.tensor([[8.0, 16.0], [0.0, 0.0], [640.0, 320.0]], dtype=torch.float64)
    stride = torch.tensor([[8.0], [8.0], [64.0]], dtype=torch.float64)
    anchors = torch.cat([centre - 4 * stride, centre + 4 * stride], dim=1)
    predictions = DensePredictions(
        [], anchors, regression[..., :1], regression, BoxDistribution(16)
    )
    actual = box_deltas(predictions, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
    for row, (n, r) in zip(actual.numpy(), [(0, 0), (1, 1), (1, 2)]):
        logits = regression[n, r].numpy().reshape(4, 17)
        probability = np.exp(logits - logits.max(1, keepdims=True))
        probability /= probability.sum(1, keepdims=True)
        np.testing.assert_allclose(row, probability @ np.arange(17), rtol=1e-9)


# --- The method


class CornerShift:
    """Deltas are shifts of the corners, in sides of the anchor; unlike Detectron2's in float64."""

    def apply_deltas(self, deltas, boxes):
        return boxes + deltas * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def make_anchors():
    boxes = []
    for level in LEVELS:
        for y, x, size in np.ndindex(level.height, level.width, level.anchors):
            half = level.stride * (1 + size)
            cx, cy = (x + 0.5) * level.stride, (y + 0.5) * level.stride
            boxes.append([cx - half, cy - half, cx + half, cy + half])
    return torch.tensor(boxes, dtype=torch.float64)


def make_dense(seed):
    anchors = make_anchors()
    return DensePredictions(
        LEVELS,
        anchors,
        logits=2 * rand(2, len(anchors), K, seed=seed),
        regression=0.3 * rand(2, len(anchors), 4, seed=seed + 1),
        transform=CornerShift(),
    )


def make_objects(counts=(2, 0)):
    boxes = torch.tensor([[22.0, 22, 50, 50], [20.0, 0, 60, 30]])[: sum(counts)]
    empty = [torch.zeros(0, 4)] * 2
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    return Objects(boxes, classes, list(counts), empty, IMAGE_SIZES)


def both(channels=(4, 4)):
    s, t = maps(SIZES, channels[0], seed=1), maps(SIZES, channels[1], seed=2)
    return (
        DetectorOutputs(s, predictions=make_dense(30)),
        DetectorOutputs(t, predictions=make_dense(40)),
    )


def make(channels=(4, 4), **changes):
    of_toy = context(SIZES, channels)
    of_toy.student.matched_idxs = lambda predictions, objects: match_by_iou(
        MATCHER, predictions.anchors, objects
    )
    return build(GID, of_toy, **changes)


def requiring_grad(outputs):
    """A copy with leaves that collect gradients, and these."""
    features = {s: x.clone().requires_grad_() for s, x in outputs.features.items()}
    logits, regression = (
        x.clone().requires_grad_()
        for x in (outputs.predictions.logits, outputs.predictions.regression)
    )
    predictions = replace(outputs.predictions, logits=logits, regression=regression)
    copy = replace(outputs, features=features, predictions=predictions)
    return copy, [*features.values(), logits, regression]


def numpy_instances(student, teacher, count=10):
    """Boxes of each image, and the anchors they come from."""
    result = []
    for n, (height, width) in enumerate(IMAGE_SIZES):
        p_s, p_t = (sigmoid(x.predictions.logits[n].numpy()) for x in (student, teacher))
        higher = p_t.max(1) > p_s.max(1)
        b_s, b_t = (x.predictions.boxes[n].numpy() for x in (student, teacher))
        boxes = np.where(higher[:, None], b_t, b_s)
        boxes = np.clip(boxes, 0, [width, height, width, height])
        kept = greedy_nms(np.abs(p_t - p_s).max(1), boxes, 0.3, count)
        result.append((boxes[kept], kept))
    return result


def numpy_mask(boxes, anchors):
    """Anchors with IoU of at least .5 with an instance, and each instance's best."""
    overlap = np.array([[iou(b, a) for a in anchors] for b in boxes.astype(np.float32)])
    return (overlap.max(0) >= 0.5) | np.isclose(overlap, overlap.max(1, keepdims=True), 1e-5).any(0)


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
def test_losses_against_numpy(channels):
    student, teacher = both(channels)
    method, weights = shake(make(channels)), random_weights(student.features)
    losses = method(as_batch(student, teacher, weights, make_objects()))

    boxes = [b for b, _ in numpy_instances(student, teacher)]
    assert all(len(b) > 3 for b in boxes)
    as_tensors = [torch.as_tensor(b) for b in boxes]
    adapted = {
        s: torch.nn.functional.conv2d(x, method.adapter.weight, method.adapter.bias, padding=1)
        for s, x in student.features.items()
    }
    s, t = (pool_boxes(x, as_tensors, 10, 2).detach().numpy() for x in (adapted, teacher.features))
    of_box = weights.per_box(as_tensors).numpy()
    mask = np.stack([numpy_mask(b, student.predictions.anchors.numpy()) for b in boxes])
    assert 0 < mask.sum() < mask.size
    of_anchor = weights.per_anchor(LEVELS).numpy()[mask]
    logits, deltas = (
        [getattr(x.predictions, name).numpy()[mask] for x in (student, teacher)]
        for name in ("logits", "regression")
    )
    expected = {
        "feature": numpy_feature(s, t, of_box),
        "relation": numpy_relation(s, t, of_box),
        "cls": numpy_cls(*logits, of_anchor),
        "box": numpy_box(*deltas, of_anchor),
    }
    assert set(losses) == set(PARTS)
    for part, weight in PARTS.items():
        assert losses[part].item() == pytest.approx(weight * expected[part], rel=1e-6), part


def test_published_constants():
    node = GID.config()
    assert {part: node[f"{part.upper()}_WEIGHT"] for part in PARTS} == PARTS
    assert (node.NUM_INSTANCES, node.NMS_THRESH, node.SELECTION) == (10, 0.3, "paper")


@pytest.mark.parametrize("weight", [0.3, 1e-3])
def test_constant_weight_scales_each_loss(weight):
    student, teacher = both()
    method = shake(make())
    full = method(as_batch(student, teacher, constant_weights(student.features), make_objects()))
    weighted = method(
        as_batch(student, teacher, constant_weights(student.features, weight), make_objects())
    )
    for part in PARTS:
        assert full[part] > 0
        assert weighted[part].item() == pytest.approx(weight * full[part].item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_full_weight_is_the_method_without_weight(dtype):
    """Against the losses with the weights 1.0 written out, bit by bit."""
    student, teacher = both()
    student, teacher = (
        replace(
            x,
            features={s: f.to(dtype) for s, f in x.features.items()},
            predictions=replace(
                x.predictions,
                anchors=x.predictions.anchors.to(dtype),
                logits=x.predictions.logits.to(dtype),
                regression=x.predictions.regression.to(dtype),
            ),
        )
        for x in (student, teacher)
    )
    method = shake(make()).to(dtype)
    batch = as_batch(student, teacher, DistillWeights.full(student.features), make_objects())
    with_weights, boxes = method(batch), method._instances(batch)
    adapted = {s: method.adapter(x) for s, x in student.features.items()}
    s, t = (pool_boxes(x, boxes, 10, 2) for x in (adapted, teacher.features))
    assert torch.equal(with_weights["feature"], 5e-4 * (((t - s) ** 2).sum() / (len(s) * 100)))
    n = len(s)
    difference = torch.nn.functional.smooth_l1_loss(
        relative_distances(s.flatten(1)), relative_distances(t.flatten(1)), reduction="sum"
    )
    assert torch.equal(with_weights["relation"], 40.0 * (difference / (n * n - n)))
    mask = method._mask(batch, boxes)
    logits = [x.predictions.logits[mask] for x in (student, teacher)]
    bce = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[0], logits[1].sigmoid(), reduction="none"
    )
    assert torch.equal(with_weights["cls"], 0.1 * (bce.sum(-1).sum() / mask.sum()))
    deltas = [x.predictions.regression[mask] for x in (student, teacher)]
    l1 = (deltas[0] - deltas[1]).abs().sum(-1).sum() / mask.sum()
    assert torch.equal(with_weights["box"], l1)


def test_relation_takes_the_smaller_weight_of_two_instances():
    s, t, _ = inputs("relation", 3)
    only = relation_loss(s, t, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    difference = numpy_distances(s.numpy())[0, 1] - numpy_distances(t.numpy())[0, 1]
    assert abs(difference) < 1
    assert only.item() == pytest.approx(2 * difference**2 / 2 / 6, rel=1e-9)


def test_a_student_equal_to_its_teacher():
    """No feature, relation or box loss, and no gradient; the cross-entropy has its entropy left."""
    _, teacher = both()
    student, leaves = requiring_grad(teacher)
    losses = make()(as_batch(student, teacher, random_weights(student.features), make_objects()))
    sum(losses.values()).backward()
    for part in ("feature", "relation", "box"):
        assert losses[part].item() == pytest.approx(0, abs=1e-20)
    assert losses["cls"] > 0
    for x in leaves:
        assert x.grad.abs().max() < 1e-12


def test_selection_lets_no_gradient_through_and_keeps_that_of_the_boxes():
    student, teacher = both()
    student, leaves = requiring_grad(student)
    losses = make()(as_batch(student, teacher, random_weights(student.features), make_objects()))
    *features, logits, regression = leaves
    # Features and responses do not touch each other.
    for part in ("feature", "relation"):
        grads = torch.autograd.grad(losses[part], features, retain_graph=True)
        assert sum(x.abs().sum() for x in grads) > 0
        grads = torch.autograd.grad(
            losses[part], [logits, regression], retain_graph=True, allow_unused=True
        )
        assert grads == (None, None)
    for part, own, other in (("cls", logits, regression), ("box", regression, logits)):
        grad, none = torch.autograd.grad(
            losses[part], [own, other], retain_graph=True, allow_unused=True
        )
        assert grad.abs().sum() > 0 and none is None
    # Another method may ask for the decoded boxes after this one.
    assert student.predictions.boxes.requires_grad
    assert not any(
        x.requires_grad
        for x in make()._instances(as_batch(student, teacher, objects=make_objects()))
    )


@pytest.mark.parametrize("selection", ["positive", "semi_positive", "negative"])
def test_selection_of_kinds(selection):
    student, teacher = both()
    method = make(SELECTION=selection)
    truth = make_objects()
    instances = method._instances(as_batch(student, teacher, objects=truth))
    matched_idxs = match_by_iou(MATCHER, student.predictions.anchors, truth)
    assert len(instances[0]) > 0
    for n, (boxes, anchors) in enumerate(numpy_instances(student, teacher)):
        objects = truth.boxes.split(truth.counts)[n].numpy()
        expected = []
        for box, anchor in zip(boxes, anchors):
            share = 0.0
            for gt in objects:
                width, height = np.minimum(box[2:], gt[2:]) - np.maximum(box[:2], gt[:2])
                inter = max(width, 0) * max(height, 0)
                share = max(share, inter / np.prod(box[2:] - box[:2]))
            positive = matched_idxs[n, anchor] >= 0
            kind = {
                "positive": positive,
                "semi_positive": not positive and share > 0.7,
                "negative": not positive and share < 0.3,
            }[selection]
            if kind:
                expected.append(box)
        np.testing.assert_allclose(instances[n].numpy(), np.array(expected).reshape(-1, 4))


def nowhere(outputs):
    """All boxes outside all images."""
    regression = torch.full_like(outputs.predictions.regression, 1000)
    return replace(outputs, predictions=replace(outputs.predictions, regression=regression))


# By name the counts of objects, and the changes to the method.
EMPTY = {
    "no objects": ((0, 0), {}),
    "no instances": ((2, 0), {}),
    "none of the kind": ((0, 0), {"SELECTION": "positive"}),
    "one instance an image": ((2, 0), {"NUM_INSTANCES": 1}),
}


@pytest.mark.parametrize("case", EMPTY)
def test_every_part_has_a_graph_whatever_is_selected(case):
    counts, changes = EMPTY[case]
    student, teacher = map(nowhere, both()) if case == "no instances" else both()
    student, leaves = requiring_grad(student)
    method = make(**changes)
    losses = method(
        as_batch(student, teacher, random_weights(student.features), make_objects(counts))
    )
    assert all(x.requires_grad and x.isfinite() for x in losses.values())
    for part, loss in losses.items():
        used = leaves[:2] if part in ("feature", "relation") else leaves[2:]
        grads = torch.autograd.grad(loss, used, retain_graph=True, allow_unused=True)
        assert any(g is not None for g in grads), part
    sum(losses.values()).backward()
    for x in [*leaves, *method.parameters()]:
        assert x.grad is not None and x.grad.isfinite().all()
    if case in ("no instances", "none of the kind"):
        assert [x.item() for x in losses.values()] == [0.0] * 4
    elif case == "one instance an image":
        assert losses["relation"].item() == 0 and losses["feature"] > 0
    else:
        assert all(x > 0 for x in losses.values())


@pytest.mark.parametrize("scale", [0.0, 65504.0])
def test_extreme_maps_give_finite_losses_and_gradients(scale):
    student, teacher = both()
    student.features = {s: (scale * x).float() for s, x in student.features.items()}
    student, leaves = requiring_grad(student)
    teacher.features = {s: (-scale * x).float() for s, x in teacher.features.items()}
    method = make().float()
    losses = method(
        as_batch(student, teacher, constant_weights(student.features, 1e-35), make_objects())
    )
    sum(losses.values()).backward()
    assert all(x.isfinite() for x in losses.values())
    assert all(x.grad.isfinite().all() for x in [*leaves, *method.parameters()])


def test_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="DISTILL.GID.SELECTION is 'best'.*paper"):
        make(SELECTION="best")


def test_levels_of_different_channels_are_refused():
    of_toy = context(SIZES)
    of_toy.pairs[1] = replace(of_toy.pairs[1], student_channels=8)
    with pytest.raises(ValueError, match="GID has one adapter.*AttentionGuided"):
        build(GID, of_toy)


# --- In a detector


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_training_step(detector, distilled_cfg, make_batch, storage):
    model = build_model(distilled_cfg(detector, {"DISTILL.METHODS": ("GID",)})).train()
    losses = model(make_batch(counts=(2, 0)))
    ours = {name: x for name, x in losses.items() if name.startswith("loss_GID")}
    assert set(ours) == {f"loss_GID_{part}" for part in PARTS}
    sum(ours.values()).backward()
    assert all(x.isfinite() and x > 0 for x in ours.values())
    for p in model.distiller.parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0
    head = model.context.student.head
    assert all(p.grad is not None for p in head.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())
