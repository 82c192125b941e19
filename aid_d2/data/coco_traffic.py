"""COCO-traffic: the part of COCO 2017 that shows road traffic, as the AID paper selects it."""

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

# COCO's ids and names, in COCO's order.
_CLASSES = {
    1: "person",
    2: "bicycle",
    3: "car",
    4: "motorcycle",
    6: "bus",
    7: "train",
    8: "truck",
    10: "traffic light",
    11: "fire hydrant",
    13: "stop sign",
    14: "parking meter",
    17: "cat",
    18: "dog",
}
_SELECTING_IDS = {2, 3, 4, 6, 7, 8, 10, 11, 13}
_KEPT_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


def coco_traffic_classes(num_classes: int = 13) -> dict[int, str]:
    """Returns COCO id -> name of the 13 classes, or of the 11 without cat and dog."""
    if num_classes not in (11, 13):
        raise ValueError(f"COCO-traffic has 13 or 11 classes, not {num_classes}.")
    return dict(list(_CLASSES.items())[:num_classes])


def filter_coco_traffic(coco: Mapping, num_classes: int = 13) -> dict:
    """Selects COCO-traffic from the contents of an official `instances_*2017.json`.

    An image is kept if it shows a vehicle, traffic light, fire hydrant or stop sign; people, pets
    or parking meters alone do not count. Of a kept image the annotations of the classes are kept,
    crowds included, with their official areas but without segmentation.

    Args:
        coco: a dict in COCO's format with the official category ids.
        num_classes: 13, or 11 without cat and dog.

    Returns:
        a dict in COCO's format; categories keep COCO's ids.

    Raises:
        ValueError: not COCO's format, or a category is missing.
    """
    classes = coco_traffic_classes(num_classes)
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco, Mapping) or not coco.get(key):
            raise ValueError(f"no {key!r}: not a COCO file with instance annotations")
    found = {category["id"]: category.get("name") for category in coco["categories"]}
    for coco_id, name in classes.items():
        if found.get(coco_id) != name:
            raise ValueError(
                f"category {coco_id} is {found.get(coco_id)!r}, expected {name!r} as in COCO 2017"
            )
    kept = {a["image_id"] for a in coco["annotations"] if a["category_id"] in _SELECTING_IDS}
    images = [image for image in coco["images"] if image["id"] in kept]
    annotations = [
        {key: annotation[key] for key in _KEPT_KEYS}
        for annotation in coco["annotations"]
        if annotation["image_id"] in kept and annotation["category_id"] in classes
    ]
    logger.info(
        f"COCO-traffic, {num_classes} classes: {len(images)} of {len(coco['images'])} images, "
        f"{len(annotations)} of {len(coco['annotations'])} annotations."
    )
    return {
        "info": coco.get("info", {}),
        "licenses": coco.get("licenses", []),
        "images": images,
        "annotations": annotations,
        "categories": [c for c in coco["categories"] if c["id"] in classes],
    }
