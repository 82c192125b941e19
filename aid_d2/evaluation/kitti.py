"""Average precision of KITTI's 2D object benchmark (Geiger et al., CVPR 2012).

These functions follow the benchmark's program `evaluate_object`, but for the following.

* It gives each score threshold to one recall point, so that with 40 objects or fewer it runs out
  of thresholds: a faultless detector of n objects has about n/40. Here a threshold also serves
  every further recall point that it reaches, and a faultless detector always has 100. With more
  than 40 objects the thresholds are the same.
* It adds up recall points in floating point; here they are exact, which may decide a tie between
  two thresholds otherwise.
* A precision of 0/0 counts as 0.
* Its versions differ on a label of exactly the minimum height: here it is evaluated.
* The labels of a registered data set were clipped to the image, and dropped if nothing was left.

In common with the program, and perhaps unexpected: labels are assigned greedily, in their order,
and overlaps have to exceed the minimum, not to reach it. A detection of any class that is too low
may take a label, which then counts neither as found nor as missed. Objects of types that are
neither the class nor its neighbor, such as Truck for Car, are background.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .frames import Detections, GroundTruth, areas, intersections, iou

# Per class: overlap that a detection has to exceed, and the type that it may be mistaken for.
MIN_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
NEIGHBOUR = {"Car": "Van", "Pedestrian": "Person_sitting"}
_RECALL_STEPS = 40


@dataclass(frozen=True)
class Difficulty:
    """Objects of at least this height in pixels, and no more occluded or truncated than this."""

    min_height: float
    max_occlusion: int
    max_truncation: float


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.30),
    "hard": Difficulty(25, 2, 0.50),
}


def kitti_ap(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    name: str,
    difficulty: Difficulty,
) -> dict[str, float]:
    """Average precision of one class at one level of difficulty.

    Args:
        truths: the labels of each frame.
        detections: of the same frames.
        name: Car, Pedestrian or Cyclist.
        difficulty: one of `DIFFICULTIES`.

    Returns:
        `R40`, the mean of the interpolated precision at recall 1/40, 2/40, ... 1, and `R11`, that
        at 0, 0.1, ... 1; 0 to 100, NaN where there is no object to be found.
    """
    frames = [_Frame(*pair, name, difficulty) for pair in zip(truths, detections)]
    num_objects = sum(int((~frame.ignored_truth).sum()) for frame in frames)
    if num_objects == 0:
        return {"R40": float("nan"), "R11": float("nan")}
    scores = [score for frame in frames for score in frame.true_positive_scores()]
    thresholds = np.array(score_thresholds(scores, num_objects))
    found, wrong = np.zeros((2, len(thresholds)))
    for frame in frames:
        more_found, more_wrong = frame.count(thresholds)
        found += more_found
        wrong += more_wrong
    precision = np.zeros(_RECALL_STEPS + 1)
    precision[: len(thresholds)] = found / np.maximum(found + wrong, 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return {
        "R40": 100 * float(precision[1:].mean()),
        "R11": 100 * float(precision[:: _RECALL_STEPS // 10].mean()),
    }


def score_thresholds(scores: Sequence[float], num_objects: int) -> list[float]:
    """Thresholds at which recall passes 0, 1/40, 2/40, ... 1.

    From the highest score of a true positive downwards, each serves the next recall point if
    its own recall is at least as near as that of the score after it, and then every point that its
    recall reaches. The lowest score always serves one.

    Args:
        scores: of the true positives.
        num_objects: all that there are to be found, at least as many.

    Returns:
        one threshold for each recall point, from 0 to as far as recall gets: at most 41.
    """
    thresholds = []
    ordered = sorted(scores, reverse=True)
    for i, score in enumerate(ordered):
        point = len(thresholds)
        if point > _RECALL_STEPS:
            break
        # Twice the point lies beyond the sum of this recall, (i+1)/n, and the next, (i+2)/n.
        next_is_nearer = _RECALL_STEPS * (2 * i + 3) < 2 * point * num_objects
        if next_is_nearer and i + 1 < len(ordered):
            continue
        reached = _RECALL_STEPS * (i + 1) // num_objects
        thresholds += [score] * max(1, reached - point + 1)
    return thresholds


class _Frame:
    """One frame seen from one class and difficulty.

    Labels of the class that are too difficult, those of its neighbor, and detections that are too
    low are ignored: they may be assigned to each other and to the rest, and then do not count.
    """

    def __init__(
        self, truth: GroundTruth, detections: Detections, name: str, difficulty: Difficulty
    ):
        self.min_overlap = MIN_OVERLAP[name]
        of_class = truth.types == name
        relevant = of_class | (truth.types == NEIGHBOUR.get(name))
        evaluated = (
            of_class
            & (truth.boxes[:, 3] - truth.boxes[:, 1] >= difficulty.min_height)
            & (truth.occluded <= difficulty.max_occlusion)
            & (truth.truncated <= difficulty.max_truncation)
        )
        low = detections.boxes[:, 3] - detections.boxes[:, 1] < difficulty.min_height
        candidates = low | (detections.types == name)
        boxes = detections.boxes[candidates]
        self.ignored_truth = ~evaluated[relevant]
        self.ignored_detection = low[candidates]
        self.scores = detections.scores[candidates]
        self.overlap = iou(truth.boxes[relevant], boxes)
        dont_care = truth.boxes[truth.types == "DontCare"]
        covered = intersections(dont_care, boxes) > self.min_overlap * areas(boxes)
        self.in_dont_care = covered.any(axis=0)

    def true_positive_scores(self) -> list[float]:
        """Scores of the true positives when every label takes the surest detection left."""
        scores = []
        free = np.ones(len(self.scores), dtype=bool)
        for overlap, ignored in zip(self.overlap, self.ignored_truth):
            candidates = np.flatnonzero(free & (overlap > self.min_overlap))
            if len(candidates) == 0:
                continue
            taken = candidates[self.scores[candidates].argmax()]
            free[taken] = False
            if not ignored and not self.ignored_detection[taken]:
                scores.append(float(self.scores[taken]))
        return scores

    def count(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (T,) of true and of false positives above or at each of the thresholds (T,).

        Every label takes the detection left that overlaps it most; an ignored one, the first of
        them, only where there is no other.
        """
        free = self.scores >= thresholds[:, None]
        found = np.zeros(len(thresholds))
        for overlap, ignored in zip(self.overlap, self.ignored_truth):
            matches = overlap > self.min_overlap
            if not matches.any():
                continue
            candidates = free & matches
            valid = candidates & ~self.ignored_detection
            best = np.where(valid, overlap, -1.0).argmax(axis=1)
            has_valid, has_any = valid.any(axis=1), candidates.any(axis=1)
            taken = np.where(has_valid, best, candidates.argmax(axis=1))
            free[has_any, taken[has_any]] = False
            if not ignored:
                found += has_valid
        wrong = free & ~self.ignored_detection & ~self.in_dont_care
        return found, wrong.sum(axis=1)
