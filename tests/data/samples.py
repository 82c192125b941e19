"""Small annotations written by hand, and where genuine data may be."""

import os
from pathlib import Path

REAL_DATA = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()

# The traffic classes and a few others.
IDS_AND_NAMES = [
    *((1, "person"), (2, "bicycle"), (3, "car"), (4, "motorcycle"), (5, "airplane"), (6, "bus")),
    *((7, "train"), (8, "truck"), (9, "boat"), (10, "traffic light"), (11, "fire hydrant")),
    *((13, "stop sign"), (14, "parking meter"), (15, "bench"), (17, "cat"), (18, "dog")),
]


def kitti_line(kind, box, truncated="0.00", occluded="0"):
    """One line of a label file; what does not matter here is the same for all."""
    coordinates = " ".join(f"{v:.2f}" for v in box)
    return f"{kind} {truncated} {occluded} 1.57 {coordinates} 1.50 1.60 3.90 1.00 1.70 20.00 1.60\n"


def coco_of(*images):
    """Each image is a list of (category id, iscrowd)."""
    annotations = [
        {"image_id": image, "category_id": category, "iscrowd": crowd}
        for image, listed in enumerate(images, start=1)
        for category, crowd in listed
    ]
    for i, annotation in enumerate(annotations, start=1):
        annotation.update(id=i, bbox=[1, 2, 3, 4], area=7.5, segmentation=[[1, 2, 4, 2, 4, 6]])
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, len(images) + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in IDS_AND_NAMES],
    }
