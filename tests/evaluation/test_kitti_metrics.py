"""KITTI's benchmark: cases worked out by hand, and a slow reference on random frames."""

import math

import numpy as np
import pytest

from aid_d2.evaluation import Detections, GroundTruth, kitti_ap
from aid_d2.evaluation.kitti import DIFFICULTIES, score_thresholds

MODERATE = DIFFICULTIES["moderate"]


def truth(*objects):
    """Objects are (type, box), or (type, box, truncated, occluded)."""
    rows = [(*x, 0.0, 0)[:4] if len(x) == 2 else x for x in objects]
    kinds, boxes, truncated, occluded = zip(*rows) if rows else ((), (), (), ())
    return GroundTruth(
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array(kinds, dtype=str),
        np.array(truncated, dtype=float),
        np.array(occluded, dtype=int),
    )


def found(*objects):
    """Objects are (type, box, score)."""
    kinds, boxes, scores = zip(*objects) if objects else ((), (), ())
    return Detections(
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array(kinds, dtype=str),
        np.array(scores, dtype=float),
    )


def box(x, y=0, width=100, height=50):
    return (x, y, x + width, y + height)


def ap(truths, detections, name="Car", difficulty=MODERATE):
    result = kitti_ap(truths, detections, name, difficulty)
    return result["R40"], result["R11"]


HERE, THERE, AWAY = box(0), box(200), box(400)


def test_perfect_detections_have_100_however_few_the_objects():
    assert ap([truth(("Car", HERE))], [found(("Car", HERE, 0.3))]) == (100, 100)
    cars = truth(("Car", HERE), ("Car", THERE), ("Car", AWAY))
    detections = found(("Car", HERE, 0.9), ("Car", THERE, 0.8), ("Car", AWAY, 0.7))
    assert ap([cars, truth()], [detections, found()]) == (100, 100)


def test_nothing_found_is_0_and_nothing_to_find_is_nan():
    assert ap([truth(("Car", HERE))], [found()]) == (0, 0)
    assert ap([truth(("Car", HERE))], [found(("Pedestrian", HERE, 0.9))]) == (0, 0)
    assert all(map(math.isnan, ap([truth()], [found(("Car", HERE, 0.9))])))
    assert all(map(math.isnan, ap([truth(("Van", HERE))], [found()])))


def test_half_found():
    cars = truth(("Car", HERE), ("Car", THERE))
    # Recall reaches 20/40, and of 0, 0.1, ... 1 the first six.
    expected = (50, pytest.approx(100 * 6 / 11))
    assert ap([cars], [found(("Car", HERE, 0.9))]) == expected


def test_a_second_detection_of_an_object_is_wrong():
    cars = truth(("Car", HERE), ("Car", THERE))
    twice = [("Car", HERE, 0.9), ("Car", HERE, 0.8), ("Car", THERE, 0.7)]
    # Precision 1 up to recall 1/2, then 2/3.
    r40 = 100 * (20 + 20 * 2 / 3) / 40
    r11 = 100 * (6 + 5 * 2 / 3) / 11
    assert ap([cars], [found(*twice)]) == (pytest.approx(r40), pytest.approx(r11))


def test_precision_is_interpolated_from_higher_recall():
    cars = truth(("Car", HERE), ("Car", THERE))
    # 1/2 at recall 1/2, but 2/3 at recall 1.
    detections = found(("Car", AWAY, 0.95), ("Car", HERE, 0.9), ("Car", THERE, 0.7))
    assert ap([cars], [detections]) == (pytest.approx(200 / 3), pytest.approx(200 / 3))


@pytest.mark.parametrize(
    "name, shift, hit",
    [("Car", 17, True), ("Car", 18, False), ("Pedestrian", 33, True), ("Cyclist", 34, False)],
)
def test_overlap_that_counts(name, shift, hit):
    # Shifted by s of 100 pixels, the IoU is (100-s)/(100+s): 0.7 at 17.6, 0.5 at 33.3.
    shifted = found((name, box(shift), 0.9))
    assert ap([truth((name, HERE))], [shifted], name) == ((100, 100) if hit else (0, 0))


def test_overlap_has_to_exceed_the_minimum():
    half = found(("Cyclist", box(0, width=50), 0.9))
    assert ap([truth(("Cyclist", HERE))], [half], "Cyclist") == (0, 0)


@pytest.mark.parametrize(
    "properties, levels",
    [
        ({}, {"easy", "moderate", "hard"}),
        ({"height": 40}, {"easy", "moderate", "hard"}),
        ({"height": 39}, {"moderate", "hard"}),
        ({"height": 24}, set()),
        ({"occluded": 1}, {"moderate", "hard"}),
        ({"occluded": 2}, {"hard"}),
        ({"occluded": 3}, set()),
        ({"truncated": 0.15}, {"easy", "moderate", "hard"}),
        ({"truncated": 0.16}, {"moderate", "hard"}),
        ({"truncated": 0.31}, {"hard"}),
        ({"truncated": 0.51}, set()),
    ],
)
def test_levels_of_difficulty(properties, levels):
    area = box(0, height=properties.get("height", 50))
    car = ("Car", area, properties.get("truncated", 0.0), properties.get("occluded", 0))
    for level, difficulty in DIFFICULTIES.items():
        missed = ap([truth(car)], [found()], difficulty=difficulty)
        # One that is too difficult is not to be found, nor is it wrong to find it.
        hit = ap(
            [truth(car, ("Car", AWAY))],
            [found(("Car", area, 0.9), ("Car", AWAY, 0.8))],
            difficulty=difficulty,
        )
        assert hit == (100, 100)
        assert missed == (0, 0) if level in levels else all(map(math.isnan, missed))


@pytest.mark.parametrize(
    "name, other, ignored",
    [
        ("Car", "Van", True),
        ("Car", "Truck", False),
        ("Pedestrian", "Person_sitting", True),
        ("Pedestrian", "Cyclist", False),
        ("Cyclist", "Person_sitting", False),
    ],
)
def test_neighbour_classes_are_ignored(name, other, ignored):
    detections = found((name, HERE, 0.9), (name, AWAY, 0.8))
    result = ap([truth((other, HERE), (name, AWAY))], [detections], name)
    assert result == ((100, 100) if ignored else (50, 50))
    # Not even a neighbour serves twice.
    twice = found((name, HERE, 0.9), (name, HERE, 0.85), (name, AWAY, 0.8))
    result = ap([truth((other, HERE), (name, AWAY))], [twice], name)
    assert result[0] == pytest.approx(50 if ignored else 100 / 3)


def test_detections_inside_dont_care_are_ignored():
    region = ("DontCare", box(0, width=1000), -1.0, -1)
    away = box(5000)
    cars = truth(region, ("Car", away))
    for x, wrong in ((0, 0), (929, 0), (931, 1)):  # 71 and 69 of 100 pixels inside
        detections = found(("Car", box(x), 0.9), ("Car", away, 0.8))
        assert ap([cars], [detections]) == (100 / (1 + wrong),) * 2
    # All of them, not one per region, and none that an object has a use for.
    many = found(("Car", box(0), 0.9), ("Car", box(1), 0.9), ("Car", box(200), 0.8))
    assert ap([truth(region, ("Car", box(200)))], [many]) == (100, 100)


def test_low_detections_are_ignored():
    small = box(0, height=24)
    detections = found(("Car", small, 0.9), ("Car", AWAY, 0.8))
    assert ap([truth(("Car", AWAY))], [detections]) == (100, 100)
    # One that takes an object makes it neither found nor missed, unless another fits.
    tall = box(0, height=25)
    other = ("Car", THERE, 0.5)
    both = truth(("Car", tall), ("Car", THERE))
    assert ap([both], [found(("Car", small, 0.9), other)])[0] == 50
    assert ap([both], [found(("Car", tall, 0.9), ("Car", small, 0.8), other)]) == (100, 100)


def test_the_best_overlap_is_assigned_not_the_best_score():
    near, far = box(2), box(10)
    cars = truth(("Car", HERE), ("Car", box(12)))
    detections = found(("Car", far, 0.9), ("Car", near, 0.8))
    assert ap([cars], [detections]) == (100, 100)


def test_as_many_thresholds_as_recall_points():
    scores = np.linspace(1, 0, 400).tolist()
    assert len(score_thresholds(scores, 400)) == 41
    assert score_thresholds(scores[:1], 400) == [1.0]
    # Recall 200/400 reaches the point 20/40, the 21st.
    assert len(score_thresholds(scores[:200], 400)) == 21
    # Point k/40 is served by the recall nearest to it, here 10 k/400.
    assert score_thresholds(scores, 400)[1:] == scores[9::10]
    assert score_thresholds([0.9, 0.8], 2) == [0.9] * 21 + [0.8] * 20
    assert score_thresholds([], 5) == []


# --- the slow reference: one threshold, one label and one detection at a time -------------------


def reference(truths, detections, name, level):
    height, occlusion, truncation = {
        "easy": (40, 0, 0.15), "moderate": (25, 1, 0.3), "hard": (25, 2, 0.5)
    }[level]  # fmt: skip
    overlap = 0.7 if name == "Car" else 0.5
    neighbour = {"Car": "Van", "Pedestrian": "Person_sitting"}.get(name)
    frames = []
    for gt, dt in zip(truths, detections):
        labels, regions, candidates = [], [], []
        for b, kind, cut, hidden in zip(gt.boxes, gt.types, gt.truncated, gt.occluded):
            hard = b[3] - b[1] < height or hidden > occlusion or cut > truncation
            if kind == name:
                labels.append((b, "ignored" if hard else "valid"))
            elif kind == neighbour:
                labels.append((b, "ignored"))
            elif kind == "DontCare":
                regions.append(b)
        for b, kind, score in zip(dt.boxes, dt.types, dt.scores):
            if b[3] - b[1] < height:
                candidates.append((b, score, "ignored"))
            elif kind == name:
                candidates.append((b, score, "valid"))
        frames.append((labels, regions, candidates))

    def run(threshold):
        tp, fp, fn, scores = 0, 0, 0, []
        for labels, regions, candidates in frames:
            left = list(range(len(candidates)))
            if threshold is not None:
                left = [j for j in left if candidates[j][1] >= threshold]
            for b, state in labels:
                fits = [j for j in left if slow_iou(b, candidates[j][0]) > overlap]
                if not fits:
                    fn += state == "valid"
                    continue
                if threshold is None:
                    taken = max(fits, key=lambda j: candidates[j][1])
                else:
                    valid = [j for j in fits if candidates[j][2] == "valid"]
                    taken = max(valid or fits[:1], key=lambda j: slow_iou(b, candidates[j][0]))
                left.remove(taken)
                if state == "valid" and candidates[taken][2] == "valid":
                    tp += 1
                    scores.append(candidates[taken][1])
            for j in left:
                b, _, state = candidates[j]
                inside = any(slow_shared(b, r) / slow_area(b) > overlap for r in regions)
                fp += state == "valid" and not inside
        return tp, fp, fn, scores

    total = sum(state == "valid" for labels, _, _ in frames for _, state in labels)
    scores = sorted(run(None)[3], reverse=True)
    thresholds, point = [], 0.0
    for i, score in enumerate(scores):
        here, after = (i + 1) / total, (i + 2) / total
        if i < len(scores) - 1 and after - point < point - here - 1e-12:
            continue
        thresholds.append(score)
        point += 1 / 40
    precision = []
    for threshold in thresholds:
        tp, fp, _, _ = run(threshold)
        precision.append(tp / (tp + fp))
    precision += [0.0] * (41 - len(precision))
    best = [max(precision[i:]) for i in range(41)]
    assert len(best) == 41 and total > 40  # with fewer the rules differ, as documented
    return 100 * sum(best[1:]) / 40, 100 * sum(best[::4]) / 11


def slow_area(b):
    return (b[2] - b[0]) * (b[3] - b[1])


def slow_shared(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def slow_iou(a, b):
    shared = slow_shared(a, b)
    return shared / (slow_area(a) + slow_area(b) - shared)


def random_frames(seed, count):
    """Crowded frames: every kind of label, near hits, low, doubled and mistaken detections."""
    rng = np.random.default_rng(seed)
    kinds = ["Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck", "DontCare"]
    truths, detections = [], []
    for _ in range(count):
        labels, hits = [], []
        for _ in range(rng.integers(0, 12)):
            kind = rng.choice(kinds, p=[0.4, 0.2, 0.15, 0.08, 0.05, 0.04, 0.08])
            x, y = rng.uniform(0, 150, 2)
            b = np.array(box(x, y, rng.uniform(20, 60), rng.uniform(20, 60)))
            truncated = rng.choice([0, 0.2, 0.4, 0.6], p=[0.7, 0.1, 0.1, 0.1])
            labels.append((kind, b, truncated, rng.choice(4, p=[0.6, 0.2, 0.1, 0.1])))
            for _ in range(rng.integers(0, 4)):
                guess = kind if rng.random() < 0.6 else rng.choice(kinds[:3])
                hits.append((guess, b + rng.normal(0, 2, 4), rng.choice(np.linspace(0, 1, 300))))
        for _ in range(rng.integers(0, 3)):
            hits.append((rng.choice(kinds[:3]), box(*rng.uniform(0, 150, 2)), rng.random()))
        truths.append(truth(*labels))
        detections.append(found(*hits))
    return truths, detections


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_slow_reference(seed):
    truths, detections = random_frames(seed, 250)
    for name in ("Car", "Pedestrian", "Cyclist"):
        for level in ("moderate", "hard"):
            expected = reference(truths, detections, name, level)
            result = ap(truths, detections, name, DIFFICULTIES[level])
            assert result == pytest.approx(expected)
            assert 5 < result[0] < 95  # a case that says something
