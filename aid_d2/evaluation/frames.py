"""What is to be found in a frame of a data set in KITTI's layout, and what was found."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GroundTruth:
    """The labels of one frame, in the order of its label file.

    Attributes:
        boxes: (G, 4) x1 y1 x2 y2 in pixels.
        types: (G,) KITTI's names, DontCare among them.
        truncated: (G,) fraction outside the image, 0 to 1.
        occluded: (G,) 0 fully visible, 1 partly, 2 largely occluded, 3 unknown.
    """

    boxes: np.ndarray
    types: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray


@dataclass(frozen=True)
class Detections:
    """The detections of one frame.

    Attributes:
        boxes: (D, 4) x1 y1 x2 y2 in pixels.
        types: (D,) names of classes.
        scores: (D,) the higher, the surer.
    """

    boxes: np.ndarray
    types: np.ndarray
    scores: np.ndarray

    @classmethod
    def none(cls) -> "Detections":
        return cls(np.zeros((0, 4)), np.zeros(0, dtype=str), np.zeros(0))


def ground_truth_of(coco: Mapping) -> dict[int, GroundTruth]:
    """Labels from what :func:`aid_d2.data.kitti.kitti_to_coco` made.

    It has one copy of each ignored object for every class; one of them is taken.

    Returns:
        the labels of every image id, empty ones included.

    Raises:
        ValueError: an annotation lacks KITTI's type, truncation or occlusion.
    """
    annotations = {image["id"]: [] for image in coco["images"]}
    one_class = min((category["id"] for category in coco["categories"]), default=None)
    for annotation in coco["annotations"]:
        missing = {"kitti_type", "truncated", "occluded"} - annotation.keys()
        if missing:
            raise ValueError(
                f"Annotation {annotation['id']} has no {min(missing)!r}. KITTI's metrics need a "
                "data set in KITTI's layout."
            )
        if not annotation["iscrowd"] or annotation["category_id"] == one_class:
            annotations[annotation["image_id"]].append(annotation)
    return {image: _labels(listed) for image, listed in annotations.items()}


def _labels(annotations: list[dict]) -> GroundTruth:
    boxes = np.array([x["bbox"] for x in annotations], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return GroundTruth(
        boxes=boxes,
        types=np.array([x["kitti_type"] for x in annotations], dtype=str),
        truncated=np.array([x["truncated"] for x in annotations], dtype=float),
        occluded=np.array([x["occluded"] for x in annotations], dtype=int),
    )


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas (A, B) that boxes (A, 4) share with boxes (B, 4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low).clip(min=0).prod(-1)


def areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (A, B) of boxes (A, 4) and (B, 4); 0 of two empty boxes."""
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
