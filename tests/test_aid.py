"""The weights of AID against plain Python loops in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from aid_d2.aid import (
    AID,
    GRANULARITIES,
    batch_loss,
    image_loss,
    level_loss,
    location_loss,
    loss_to_weight,
    object_loss,
)
from aid_d2.layers.cells import smallest_objects
from aid_d2.structures import (
    BACKGROUND,
    IGNORED,
    DistillWeights,
    LevelShape,
    Objects,
    UnreducedLosses,
)
from detectron2.structures import Boxes, Instances

LEVELS = [LevelShape(8, 6, 8, 3), LevelShape(16, 3, 4, 2), LevelShape(32, 2, 2, 1)]
SIZES = [level.height * level.width * level.anchors for level in LEVELS]
NORMALIZERS = ("native", "per_level")


def random_objects(counts, seed=0, height=48, width=64):
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    corner = torch.rand(total, 2, generator=generator) * torch.tensor([width, height]) * 1.2 - 6
    side = torch.rand(total, 2, generator=generator) ** 2 * torch.tensor([width, height])
    return Objects(
        boxes=torch.cat([corner, corner + side], dim=1),
        classes=torch.randint(3, (total,), generator=generator),
        counts=list(counts),
        ignored=[torch.zeros(0, 4)] * len(counts),
    )


def random_losses(counts=(3, 0, 2), seed=0, roi=False, orphan=False):
    """Losses as a detector could have them; an orphan has no positive anchor."""
    generator = torch.Generator().manual_seed(seed)
    objects = random_objects(counts, seed)
    shape = (len(counts), sum(SIZES))
    kind = torch.rand(shape, generator=generator)
    matched_idxs = torch.full(shape, BACKGROUND)
    matched_idxs[kind > 0.9] = IGNORED
    start = 0
    for image, count in enumerate(counts):
        low = start + (1 if orphan and count else 0)
        if start + count > low:
            drawn = torch.randint(low, start + count, (shape[1],), generator=generator)
            matched_idxs[image] = torch.where(kind[image] < 0.2, drawn, matched_idxs[image])
        start += count
    positive = matched_idxs >= 0
    return UnreducedLosses(
        levels=LEVELS,
        cls=torch.rand(shape, generator=generator) * (matched_idxs != IGNORED),
        box=torch.rand(shape, generator=generator) * positive,
        matched_idxs=matched_idxs,
        factor=torch.rand(shape, generator=generator),
        image_normalizer=1 + torch.rand(len(counts), generator=generator) * 9,
        batch_normalizer=torch.tensor(17.0),
        background=torch.rand(len(counts), len(LEVELS), generator=generator) * 3,
        objects=objects,
        roi=torch.rand(sum(counts), generator=generator) * 4 if roi else None,
    )


def cells():
    """(level, row, column, slice of R): the anchors at each location, in the documented order."""
    start = 0
    for index, level in enumerate(LEVELS):
        for row in range(level.height):
            for column in range(level.width):
                yield index, row, column, slice(start, start + level.anchors)
                start += level.anchors


def image_of(objects, index):
    return int(np.searchsorted(np.cumsum(objects.counts), index, side="right"))


def covers(low, high, cell, stride):
    """Whether [low, high] reaches into a cell; a line or point lies in one cell."""
    return low // stride == cell or (low < (cell + 1) * stride and high > cell * stride)


def brute_force_smallest(objects, level, among=None):
    result = np.full((len(objects.counts), level.height, level.width), -1)
    boxes = objects.boxes.tolist()
    area = [np.float32(x2 - x1) * np.float32(y2 - y1) for x1, y1, x2, y2 in boxes]
    # The largest is painted first. Of equal ones the first is to stay, and is painted last.
    among = range(len(boxes)) if among is None else among
    for index in sorted(among, key=lambda i: (area[i], i), reverse=True):
        x1, y1, x2, y2 = boxes[index]
        for row in range(level.height):
            for column in range(level.width):
                if covers(y1, y2, row, level.stride) and covers(x1, x2, column, level.stride):
                    result[image_of(objects, index), row, column] = index
    return result


# --- loss_to_weight


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
def test_weight_is_exp_of_minus_alpha_times_loss(alpha):
    loss = torch.linspace(0, 20, 50)
    expected = np.exp(-alpha * loss.double().numpy())
    np.testing.assert_allclose(loss_to_weight(loss, alpha).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 50.0])
def test_weight_is_detached_positive_monotone_and_one_at_no_loss(alpha):
    loss = torch.cat([torch.zeros(1), torch.logspace(-3, 30, 200)]).requires_grad_()
    weight = loss_to_weight(loss, alpha)
    assert not weight.requires_grad and weight.dtype == torch.float32
    assert weight[0] == 1
    assert (weight > 0).all() and (weight <= 1).all()
    assert (weight.diff() <= 0).all()
    assert weight[1] > loss_to_weight(torch.tensor(1.0), alpha) > weight[-1]


@pytest.mark.parametrize("alpha", [0.1, 5.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unknown_loss_means_the_least_weight(alpha, dtype):
    loss = torch.tensor([float("nan"), float("inf"), 1.0], dtype=dtype)
    weight = loss_to_weight(loss, alpha)
    assert weight.isfinite().all() and (weight > 0).all()
    assert weight[0] == weight[1] < 1e-30 < weight[2]


def test_alpha_zero_is_full_weight_whatever_the_loss():
    loss = torch.tensor([0.0, 3.0, 1e38, float("inf"), float("nan")])
    assert loss_to_weight(loss, 0.0).tolist() == [1.0] * 5


# --- smallest_objects


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "counts", [(4, 3), (0, 0), (0, 5, 0), (70,), (64, 0, 3), (63, 1), (130, 5)], ids=str
)
def test_smallest_objects_against_a_painter(counts, seed):
    objects = random_objects(counts, seed)
    for level, found in zip(LEVELS, smallest_objects(objects, LEVELS)):
        np.testing.assert_array_equal(found.numpy(), brute_force_smallest(objects, level))


SPECIAL_BOXES = {
    "outside": [[-30, -30, -10, -10], [70, 10, 90, 20], [64, 0, 70, 48]],
    "partly outside": [[-30, -30, 4, 4], [60, 40, 90, 90]],
    "tiny": [[17.2, 9.1, 17.3, 9.2], [0, 0, 64, 48]],
    "a point and lines": [[16, 16, 16, 16], [8, 3, 8, 40], [3, 24, 60, 24]],
    "identical": [[5, 5, 30, 30], [5, 5, 30, 30], [5, 5, 30, 30]],
    "ends on a cell border": [[8, 8, 16, 16], [16, 16, 32, 32]],
    "whole image": [[0, 0, 64, 48], [8, 8, 24, 24]],
}


@pytest.mark.parametrize("name", SPECIAL_BOXES)
def test_smallest_objects_of_special_boxes(name):
    boxes = torch.tensor(SPECIAL_BOXES[name], dtype=torch.float32)
    for counts in ([len(boxes)], [1, len(boxes) - 1]):
        objects = Objects(boxes, torch.zeros(len(boxes)), counts, [])
        for level, found in zip(LEVELS, smallest_objects(objects, LEVELS)):
            np.testing.assert_array_equal(found.numpy(), brute_force_smallest(objects, level))


# --- losses per level, image, object and location


def brute_force_sums(losses):
    """[image][level]: weighted loss, and number of positive anchors."""
    sums = np.zeros((len(losses.cls), len(LEVELS)))
    positives = np.zeros_like(sums)
    for image in range(len(losses.cls)):
        for level, _, _, anchors in cells():
            for r in range(anchors.start, anchors.stop):
                value = losses.cls[image, r].item() + losses.box[image, r].item()
                sums[image, level] += losses.factor[image, r].item() * value
                positives[image, level] += losses.matched_idxs[image, r].item() >= 0
    return sums, positives


@pytest.mark.parametrize("roi", [False, True])
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0)], ids=str)
def test_batch_loss_against_loops(roi, counts):
    losses = random_losses(counts, roi=roi)
    if roi:
        expected = brute_force_sums(losses)[0].sum() / losses.image_normalizer.double().sum().item()
    else:
        positive = (losses.matched_idxs >= 0).sum().item()
        expected = (losses.cls + losses.box).double().sum().item() / positive if positive else 0.0
    if roi and sum(counts):
        expected += losses.roi.double().mean().item()
    assert batch_loss(losses).item() == pytest.approx(expected, rel=1e-5)
    maps = AID(alpha=0.5, granularity="batch", relative=False).weights(losses).maps
    for x in maps.values():
        assert x.unique().tolist() == [pytest.approx(math.exp(-0.5 * expected), rel=1e-5)]


@pytest.mark.parametrize("roi", [False, True])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0)], ids=str)
def test_level_loss_against_loops(roi, normalizer, counts):
    losses = random_losses(counts, roi=roi)
    sums, positives = brute_force_sums(losses)
    divisor = 17.0 if normalizer == "native" else np.maximum(positives.sum(0), 1)
    expected = sums.sum(0) / divisor
    if roi and sum(counts):
        expected = expected + losses.roi.double().mean().item()
    np.testing.assert_allclose(level_loss(losses, normalizer).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("roi", [False, True])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_images_that_the_teacher_labeled_count_neither_in_the_batch_nor_in_a_level(normalizer, roi):
    losses = random_losses((3, 1, 2), roi=roi)
    expected = level_loss(losses, normalizer), batch_loss(losses)
    losses.objects.pseudo_labeled = [0]
    sums, positives = (x[1:].sum(0) for x in brute_force_sums(losses))
    native = losses.image_normalizer[1:].double().sum().item()
    of_levels = sums / (native if normalizer == "native" else np.maximum(positives, 1))
    if roi:
        of_roi = losses.roi[3:].double().mean().item()
        of_levels, of_batch = of_levels + of_roi, sums.sum() / native + of_roi
    else:
        of_batch = (losses.cls + losses.box)[1:].double().sum().item() / positives.sum()
    actual = level_loss(losses, normalizer), batch_loss(losses)
    np.testing.assert_allclose(actual[0].numpy(), of_levels, rtol=1e-5)
    assert actual[1].item() == pytest.approx(of_batch, rel=1e-5)
    assert all(abs(x - y).max() > 0.01 for x, y in zip(actual, expected))


@pytest.mark.parametrize("roi", [False, True])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0)], ids=str)
def test_image_loss_against_loops(roi, normalizer, counts):
    losses = random_losses(counts, roi=roi)
    sums, positives = brute_force_sums(losses)
    native = losses.image_normalizer.double().numpy()[:, None]
    expected = sums / (native if normalizer == "native" else np.maximum(positives, 1))
    for image in range(len(counts)):
        own = [g for g in range(sum(counts)) if image_of(losses.objects, g) == image]
        if roi and own:
            expected[image] += np.mean([losses.roi[g].item() for g in own])
    np.testing.assert_allclose(image_loss(losses, normalizer).numpy(), expected, rtol=1e-5)


def brute_force_object_loss(losses, index):
    values = [
        losses.cls[image, r].item() + losses.box[image, r].item()
        for image in range(len(losses.cls))
        for r in range(sum(SIZES))
        if losses.matched_idxs[image, r].item() == index
    ]
    first_stage = np.mean(values) if values else 0.0
    return first_stage + (losses.roi[index].item() if losses.roi is not None else 0.0), bool(values)


@pytest.mark.parametrize("roi", [False, True])
@pytest.mark.parametrize("orphan", [False, True])
def test_object_loss_against_loops(roi, orphan):
    losses = random_losses(roi=roi, orphan=orphan)
    loss, known = object_loss(losses), losses.known_objects
    for index in range(5):
        expected, has_anchor = brute_force_object_loss(losses, index)
        assert known[index] == (has_anchor or roi)
        assert loss[index].item() == pytest.approx(expected, rel=1e-5)
    if orphan and not roi:
        assert not known[0] and not known[3] and known[1]


def test_object_loss_without_objects():
    losses = random_losses(counts=(0, 0))
    loss, known = object_loss(losses), losses.known_objects
    assert loss.shape == known.shape == (0,)


@pytest.mark.parametrize("roi", [False, True])
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0)], ids=str)
def test_location_loss_against_loops(roi, counts):
    losses = random_losses(counts, roi=roi)
    maps = location_loss(losses)
    on_top = [brute_force_smallest(losses.objects, level) for level in LEVELS]
    for image in range(len(counts)):
        for level, row, column, anchors in cells():
            here = range(anchors.start, anchors.stop)
            positive = [r for r in here if losses.matched_idxs[image, r] >= 0]
            if positive:
                both = losses.cls + losses.box
                expected = np.mean([both[image, r].item() for r in positive])
            else:
                expected = sum(losses.cls[image, r].item() for r in here)
            index = on_top[level][image, row, column]
            if roi and index >= 0:
                expected += losses.roi[index].item()
            assert maps[level][image, row, column].item() == pytest.approx(expected, rel=1e-5)


# --- AID


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0), (1,)], ids=str)
@pytest.mark.parametrize("roi", [False, True])
def test_weight_has_a_map_per_stride_between_0_and_1(granularity, counts, roi):
    weights = AID(alpha=0.5, granularity=granularity, relative=False).weights(
        random_losses(counts, roi=roi)
    )
    assert list(weights.maps) == [8, 16, 32]
    for level in LEVELS:
        values = weights.maps[level.stride]
        assert values.shape == (len(counts), 1, level.height, level.width)
        assert not values.requires_grad
        assert (values > 0).all() and (values <= 1).all()
        # A one-stage detector's loss on the batch is one on objects.
        unknown = granularity == "batch" and not roi and not sum(counts)
        assert (values < 1).any() != unknown


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("granularity", ["level", "image"])
def test_level_and_image_maps_are_constant(granularity, normalizer):
    losses = random_losses()
    sums, positives = brute_force_sums(losses)
    if granularity == "level":
        divisor = 17.0 if normalizer == "native" else np.maximum(positives.sum(0), 1)
        loss = np.broadcast_to(sums.sum(0) / divisor, sums.shape)
    else:
        native = losses.image_normalizer.double().numpy()[:, None]
        loss = sums / (native if normalizer == "native" else np.maximum(positives, 1))
    weights = AID(
        alpha=0.3, granularity=granularity, normalizer=normalizer, relative=False
    ).weights(losses)
    for index, level in enumerate(LEVELS):
        expected = np.exp(-0.3 * loss[:, index])[:, None, None, None]
        actual = weights.maps[level.stride].numpy()
        np.testing.assert_allclose(actual, np.broadcast_to(expected, actual.shape), rtol=1e-5)


@pytest.mark.parametrize("roi", [False, True])
@pytest.mark.parametrize("orphan", [False, True])
def test_instance_maps_against_a_painter(roi, orphan):
    """An object without a loss leaves what is under it as it is."""
    losses = random_losses(roi=roi, orphan=orphan)
    of_objects = [brute_force_object_loss(losses, i) for i in range(5)]
    known = [i for i, (_, has_anchor) in enumerate(of_objects) if has_anchor or roi]
    weights = AID(alpha=0.7, granularity="instance", relative=False).weights(losses)
    for index, level in enumerate(LEVELS):
        on_top = brute_force_smallest(losses.objects, level, known)
        for image, row, column in np.ndindex(*on_top.shape):
            matched_idxs = on_top[image, row, column]
            loss = (
                of_objects[matched_idxs][0]
                if matched_idxs >= 0
                else losses.background[image, index].item()
            )
            weight = weights.maps[level.stride][image, 0, row, column].item()
            assert weight == pytest.approx(math.exp(-0.7 * loss), rel=1e-5)


def test_location_maps_are_the_weights_of_the_location_losses():
    losses = random_losses(roi=True)
    weights = AID(alpha=0.7, granularity="location", relative=False).weights(losses)
    for level, loss in zip(LEVELS, location_loss(losses)):
        np.testing.assert_allclose(
            weights.maps[level.stride][:, 0].numpy(),
            np.exp(-0.7 * loss.double().numpy()),
            rtol=1e-5,
        )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("roi", [False, True])
def test_relative_weights_are_ratios_of_plain_ones_up_to_full_weight(granularity, roi):
    """exp(-a max(Dt - Ds, 0)) = min(exp(-a Dt) / exp(-a Ds), 1)"""
    losses, other = random_losses(roi=roi, orphan=True), random_losses(roi=roi, orphan=True, seed=4)
    other = replace(
        losses, cls=other.cls, box=other.box, background=other.background, roi=other.roi
    )
    below = full = 0
    for teacher, student in ((losses, other), (other, losses)):
        relative = AID(alpha=0.7, granularity=granularity, relative=True).weights(teacher, student)
        for stride, values in relative.maps.items():
            teachers, students = (
                AID(alpha=0.7, granularity=granularity, relative=False).weights(x).maps[stride]
                for x in (teacher, student)
            )
            torch.testing.assert_close(values, (teachers / students).clamp(max=1))
            below, full = below + (values < 0.99).sum(), full + (values == 1).sum()
    assert below > 0 and full > 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_broken_teacher_is_not_trusted(granularity, bad, alpha):
    losses = random_losses(roi=True)
    broken = replace(
        losses,
        cls=torch.full_like(losses.cls, bad),
        roi=torch.full_like(losses.roi, bad),
        background=torch.full_like(losses.background, bad),
    )
    for values in (
        AID(alpha=alpha, granularity=granularity, relative=False).weights(broken).maps.values()
    ):
        assert values.isfinite().all() and (values > 0).all()
        assert (values == 1).all() if alpha == 0 else (values < 1e-30).all()


def test_a_broken_object_leaves_the_others_alone():
    losses = random_losses(roi=True)
    roi = losses.roi.clone()
    roi[1] = float("nan")
    before = AID(alpha=1.0, granularity="instance", relative=False).weights(losses)
    after = AID(alpha=1.0, granularity="instance", relative=False).weights(replace(losses, roi=roi))
    changed = 0
    for level in LEVELS:
        mine = torch.as_tensor(brute_force_smallest(losses.objects, level) == 1)
        old, new = before.maps[level.stride][:, 0], after.maps[level.stride][:, 0]
        assert torch.equal(old[~mine], new[~mine])
        assert (new[mine] < 1e-30).all()
        changed += mine.sum()
    assert changed > 0


def test_an_image_has_the_weights_it_has_alone():
    """All but `level` judge each image by itself; its background only by its own loss."""
    losses = random_losses(counts=(3, 0, 2), roi=True)
    matched_idxs = torch.where(
        losses.matched_idxs[2:] >= 0, losses.matched_idxs[2:] - 3, losses.matched_idxs[2:]
    )
    alone = replace(
        losses,
        cls=losses.cls[2:],
        box=losses.box[2:],
        matched_idxs=matched_idxs,
        factor=losses.factor[2:],
        image_normalizer=losses.image_normalizer[2:],
        background=losses.background[2:],
        objects=Objects(losses.objects.boxes[3:], losses.objects.classes[3:], [2], []),
        roi=losses.roi[3:],
    )
    for granularity in ("image", "instance", "location"):
        together = AID(alpha=0.4, granularity=granularity, relative=False).weights(losses)
        for stride, values in (
            AID(alpha=0.4, granularity=granularity, relative=False).weights(alone).maps.items()
        ):
            torch.testing.assert_close(values[0], together.maps[stride][2])


def test_unknown_granularity_names_the_choices():
    with pytest.raises(ValueError, match="'pixel'.*instance"):
        AID(alpha=0.1, granularity="pixel", relative=False).weights(random_losses())


# --- DistillWeights


def test_full_weight_is_one_everywhere():
    features = {8: torch.rand(2, 5, 6, 8), 16: torch.rand(2, 5, 3, 4)}
    weights = DistillWeights.full(features)
    assert {s: tuple(x.shape) for s, x in weights.maps.items()} == {
        8: (2, 1, 6, 8),
        16: (2, 1, 3, 4),
    }
    assert all((x == 1).all() for x in weights.maps.values())


@pytest.mark.parametrize("weight", [1.0, 0.1, 0.123456789, 1e-35])
def test_pooling_keeps_a_constant_map_exactly(weight):
    attention = torch.rand(3, 1, 7, 9, generator=torch.Generator().manual_seed(0)) ** 8
    pooled = DistillWeights({8: torch.full((3, 1, 7, 9), weight)}).pooled(8, attention)
    assert pooled.tolist() == [[torch.tensor(weight).item()]] * 3


def test_pooling_is_the_attention_weighted_mean():
    generator = torch.Generator().manual_seed(1)
    values, attention = torch.rand(2, 3, 1, 7, 9, generator=generator, dtype=torch.float64)
    w, a = values.numpy().reshape(3, -1), attention.numpy().reshape(3, -1)
    expected = (w * a).sum(1) / a.sum(1)
    pooled = DistillWeights({8: values}).pooled(8, attention)
    assert pooled.shape == (3, 1)
    np.testing.assert_allclose(pooled[:, 0].numpy(), expected, rtol=1e-12)


# --- Objects


def test_objects_of_instances_leave_ignore_regions_apart():
    def instances(boxes, classes):
        boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        return Instances((48, 64), gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes).long())

    objects = Objects.from_inputs(
        [
            {"instances": x}
            for x in [
                instances([[0, 0, 9, 9], [1, 1, 5, 5]], [2, -1]),
                instances([], []),
                instances([[3, 3, 8, 8], [4, 4, 6, 6]], [0, 1]),
            ]
        ],
        torch.device("cpu"),
    )
    assert objects.boxes.tolist() == [[0, 0, 9, 9], [3, 3, 8, 8], [4, 4, 6, 6]]
    assert objects.classes.tolist() == [2, 0, 1]
    assert objects.counts == [1, 0, 2]
    assert objects.image_index.tolist() == [0, 2, 2]
    assert [x.tolist() for x in objects.ignored] == [[[1, 1, 5, 5]], [], []]
