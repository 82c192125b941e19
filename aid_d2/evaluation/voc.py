"""Average precision in the manner of PASCAL VOC 2010, as the AID paper reports it for KITTI."""

from collections.abc import Sequence

import numpy as np

from .frames import Detections, GroundTruth, iou


def voc_ap(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    name: str,
    classes: Sequence[str],
    min_overlap: float = 0.5,
) -> float:
    """Area below the interpolated precision-recall curve of one class, over all its points.

    As in mmdetection, with which the paper was evaluated: a detection goes to the object of its
    class or the ignore region that it overlaps most, if by `min_overlap` or more. At an object it
    is a true positive, from the second one on a false positive; at an ignore region it is neither.
    KITTI's levels of difficulty play no part.

    Args:
        truths: the labels of each frame.
        detections: of the same frames.
        name: the class.
        classes: all classes; labels of other types, DontCare included, are ignore regions.
        min_overlap: IoU.

    Returns:
        0 to 100; NaN where the class has no object.
    """
    scores, outcomes, num_objects = [], [], 0
    for truth, found in zip(truths, detections):
        of_class = truth.types == name
        regions = ~np.isin(truth.types, classes)
        boxes = np.concatenate([truth.boxes[of_class], truth.boxes[regions]])
        found_of_class = found.types == name
        order = np.argsort(-found.scores[found_of_class], kind="stable")
        scores.append(found.scores[found_of_class][order])
        overlap = iou(found.boxes[found_of_class][order], boxes)
        outcomes.append(_outcomes(overlap, int(of_class.sum()), min_overlap))
        num_objects += int(of_class.sum())
    if num_objects == 0:
        return float("nan")
    by_score = np.argsort(-np.concatenate(scores), kind="stable")
    right, wrong = np.concatenate(outcomes)[by_score].cumsum(axis=0).T
    precision = right / np.maximum(right + wrong, 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall rises by 1 / num_objects at each true positive, and nowhere else.
    rises = np.diff(right, prepend=0) > 0
    return 100 * float(precision[rises].sum()) / num_objects


def _outcomes(overlap: np.ndarray, num_objects: int, min_overlap: float) -> np.ndarray:
    """(D, 2) whether each detection is a true and whether it is a false positive.

    Args:
        overlap: (D, B) of detections, surest first, with `num_objects` objects and the regions.
        num_objects: of the boxes, the first ones.
        min_overlap: IoU.
    """
    outcomes = np.zeros((len(overlap), 2), dtype=int)
    taken = set()
    for detection, row in enumerate(overlap):
        best = int(row.argmax()) if len(row) else -1
        if best < 0 or row[best] < min_overlap or best in taken:
            outcomes[detection, 1] = 1
        elif best < num_objects:
            outcomes[detection, 0] = 1
            taken.add(best)
    return outcomes
