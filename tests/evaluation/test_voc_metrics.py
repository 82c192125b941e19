"""The AID paper's AP at IoU 0.5: worked out by hand."""

import math

import numpy as np
import pytest

from aid_d2.evaluation import Detections, GroundTruth, voc_ap

CLASSES = ["Car", "Pedestrian"]


def boxes(lefts):
    return np.array([(x, 0, x + 100, 50) for x in lefts], dtype=float).reshape(-1, 4)


def truth(**lefts):
    """A frame with boxes of 100x50 at these places, by type."""
    kinds = [kind for kind, places in lefts.items() for _ in places]
    nothing = np.zeros(len(kinds))
    places = [x for listed in lefts.values() for x in listed]
    return GroundTruth(boxes(places), np.array(kinds, dtype=str), nothing, nothing.astype(int))


def found(*places, kind="Car"):
    """Detections at these places, the surest first."""
    scores = np.linspace(0.9, 0.1, len(places))
    return Detections(boxes(places), np.array([kind] * len(places), dtype=str), scores)


def ap(*frames, name="Car"):
    truths, detections = zip(*frames)
    return voc_ap(truths, detections, name, CLASSES)


def test_perfect_empty_and_no_objects():
    assert ap((truth(Car=[0, 200]), found(0, 200))) == 100
    assert ap((truth(Car=[0, 200]), found())) == 0
    assert math.isnan(ap((truth(Pedestrian=[0]), found(0))))
    assert ap((truth(Pedestrian=[0]), found()), (truth(Car=[0]), found(0))) == 100


def test_duplicates_and_strays_lower_the_precision_below_them():
    # right, wrong (twice), right: precision 1 at recall 1/2, 2/3 at recall 1.
    assert ap((truth(Car=[0, 200]), found(0, 5, 200))) == pytest.approx(100 * (1 + 2 / 3) / 2)
    # wrong, right, right: 2/3 at recall 1 also holds below.
    assert ap((truth(Car=[0, 200]), found(600, 0, 200))) == pytest.approx(200 / 3)


def test_frames_are_ranked_together():
    # Scores 0.9 and 0.1 in either frame; the wrong ones share rank 1 and 2 with the right ones.
    frames = [(truth(Car=[0]), found(0, 500)), (truth(Car=[0]), found(500, 0))]
    # right, wrong, wrong, right: the later 2/4 is below the 1/1 of recall 1/2.
    assert ap(*frames) == pytest.approx(100 * (1 + 2 / 4) / 2)


def test_iou_of_exactly_a_half_counts():
    half = Detections(np.array([[0.0, 0, 50, 50]]), np.array(["Car"]), np.array([0.5]))
    assert ap((truth(Car=[0]), half)) == 100
    assert ap((truth(Car=[0]), found(34))) == 0


def test_other_types_are_ignore_regions_and_other_classes_are_not():
    for kind in ("Van", "Truck", "DontCare"):
        assert ap((truth(Car=[400], **{kind: [0]}), found(0, 5, 400))) == 100
    assert ap((truth(Car=[400], Pedestrian=[0]), found(0, 400))) == 50


def test_a_detection_goes_to_what_it_overlaps_most():
    # At 30 between a car at 0 and a van at 40: nearer to the van, hence ignored.
    frame = truth(Car=[0], Van=[40])
    assert ap((frame, found(30))) == 0
    assert ap((frame, found(30, 0))) == 100
