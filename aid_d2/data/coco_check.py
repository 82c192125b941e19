"""What is wrong with annotations in COCO's format, and mending what is harmless."""

import math
from collections.abc import Iterable
from itertools import count

import numpy as np

from .coco_records import MAX_ID, Records, canonical
from .problems import Problem

_NUMBERS = {int, float}
_MAX_PIXELS = 2**31


def check_coco(coco: dict) -> tuple[dict, list[Problem]]:
    """Find what is wrong with annotations in COCO's format, and mend what is harmless.

    Args:
        coco: lists of images, annotations and categories. It is left as it is.

    Returns:
        `coco` itself where nothing had to be mended, else its mended copy; and all problems. The
        annotations are of use only when no problem is fatal.
    """
    images = Records("images", coco["images"], ("id", "file_name", "height", "width"))
    categories = Records("categories", coco["categories"], ("id", "name"))
    annotations = Records(
        "annotations",
        coco["annotations"],
        ("id", "image_id", "category_id", "bbox"),
        _file_names(images),
    )
    image_ids, category_ids = _check_ids(images), _check_ids(categories)
    _check_text(images, "file_name")
    _check_text(categories, "name")
    names = [v if type(v) is str else None for v in categories.values("name")]
    categories.fail("with the name of another", _repeated(names))
    image_sizes = _check_sizes(images)

    _check_annotation_ids(annotations)
    _check_crowds(annotations)
    _check_masks(annotations)
    boxes = _check_boxes(annotations)
    _check_areas(annotations, boxes)
    if not categories.broken:
        refs = _refer(annotations, "category_id", category_ids)
        annotations.fail('with a "category_id" that is not in categories', _absent(refs))
    if not images.broken:
        refs = _refer(annotations, "image_id", image_ids)
        by_id = dict(zip(image_ids.values(), image_sizes))
        unknown = (math.nan, math.nan)
        sizes = np.array([by_id.get(ref, unknown) for ref in refs], np.float64).reshape(-1, 2)
        _check_box_format(annotations, boxes, sizes)
        if not annotations.broken:
            _drop_useless(annotations, boxes, sizes, _absent(refs))

    problems = images.problems + categories.problems + annotations.problems
    lists = {r.kind: r.mended() for r in (images, annotations, categories)}
    unchanged = all(lists[kind] is coco[kind] for kind in lists)
    return (coco if unchanged else {**coco, **lists}), problems


def _file_names(images: Records) -> dict:
    return {canonical(row["id"]): row["file_name"] for row in images.rows}


def _canonical_all(values: list) -> list:
    if set(map(type, values)) == {int} and max(map(abs, values)) < MAX_ID:
        return values
    return [canonical(v) for v in values]


def _repeated(values: list) -> list[int]:
    seen: dict[object, int] = {}
    if len(set(values)) == len(values):
        return []
    return [i for i, v in enumerate(values) if v is not None and seen.setdefault(v, i) != i]


def _where(mask: Iterable[bool]) -> list[int]:
    return [i for i, wrong in enumerate(mask) if wrong]


def _absent(values: list) -> list[int]:
    return _where(v is None for v in values)


def _check_ids(records: Records) -> dict[int | str, int]:
    """Make all ids integers; returns the id that each canonical one becomes."""
    ids = _canonical_all(records.values("id"))
    records.fail('whose "id" is neither an integer nor a string', _absent(ids))
    records.fail("with the id of another", _repeated(ids))
    fresh = count(max((v for v in ids if type(v) is int), default=0) + 1)
    new = {v: v if type(v) is int else next(fresh) for v in ids if v is not None}
    _replace(records, "id", [new.get(v) for v in ids])
    return new


def _replace(records: Records, key: str, new: list[int | None]) -> None:
    old = records.values(key)
    changed = {
        i: n for i, (o, n) in enumerate(zip(old, new)) if n is not None and type(o) is not int
    }
    records.mend(f'whose "{key}" was no integer, replaced by one', key, changed)


def _refer(annotations: Records, key: str, ids: dict[int | str, int]) -> list[int | None]:
    """Let `key` name the mended ids; returns them, None where there is none."""
    new = [ids.get(v) for v in _canonical_all(annotations.values(key))]
    _replace(annotations, key, new)
    return new


def _check_text(records: Records, key: str) -> None:
    values = records.values(key)
    wrong = (type(v) is not str or not v.strip() or "\0" in v for v in values)
    records.fail(f'whose "{key}" is no text', _where(wrong))


def _check_sizes(images: Records) -> list[tuple]:
    """Returns the mended width and height of each image."""
    sizes = {key: _canonical_all(images.values(key)) for key in ("width", "height")}
    for key, values in sizes.items():
        wrong = _where(type(v) is not int or not 0 < v < _MAX_PIXELS for v in values)
        images.fail(f'whose "{key}" is no positive integer', wrong)
        _replace(images, key, values)
    return list(zip(sizes["width"], sizes["height"]))


def _check_annotation_ids(annotations: Records) -> None:
    old = annotations.values("id")
    ids = _canonical_all(old)
    annotations.fail('whose "id" is neither an integer nor a string', _absent(ids))
    annotations.fail("with the id of another", _repeated(ids))
    # COCO's evaluation takes a match with annotation 0 for none.
    unfit = _where(type(v) is not int or not 0 < v < MAX_ID for v in old)
    if unfit:
        annotations.set("id", {i: i + 1 for i in range(len(old))})
        annotations.mend(
            'whose "id" was no positive integer, all numbered anew', "id", {i: i + 1 for i in unfit}
        )


def _check_boxes(annotations: Records) -> np.ndarray:
    """Returns the boxes as they are, (N, 4), NaN where there is none."""
    boxes = annotations.values("bbox")
    good = [type(b) is list and len(b) == 4 and set(map(type, b)) <= _NUMBERS for b in boxes]
    annotations.fail('whose "bbox" is not four numbers', _where(not g for g in good))
    boxes = [b if g else [math.nan] * 4 for b, g in zip(boxes, good)]
    try:
        return np.array(boxes, dtype=np.float64).reshape(-1, 4)
    except OverflowError:  # an integer of more than 308 digits
        return np.array([[_finite(v) for v in b] for b in boxes], dtype=np.float64)


def _finite(value: float) -> float:
    return value if abs(value) < 1e300 else math.nan


def _check_crowds(annotations: Records) -> None:
    crowds = annotations.values("iscrowd")
    annotations.mend('without "iscrowd", taken as 0', "iscrowd", dict.fromkeys(_absent(crowds), 0))
    annotations.fail(
        'whose "iscrowd" is neither 0 nor 1',
        _where(v is not None and (type(v) not in (int, bool) or v not in (0, 1)) for v in crowds),
    )
    # Detectron2's loader takes no "ignore" but 0.
    ignore = [row.get("ignore", 0) for row in annotations.rows]
    annotations.set("ignore", dict.fromkeys(_where(v != 0 for v in ignore), 0))
    ignored = dict.fromkeys(_where(ignore), 1)
    annotations.mend('with "ignore", taken as "iscrowd"', "iscrowd", ignored)


def _check_areas(annotations: Records, boxes: np.ndarray) -> None:
    areas = annotations.values("area")
    with np.errstate(over="ignore", invalid="ignore"):
        own = (boxes[:, 2] * boxes[:, 3]).tolist()
    wrong = _where(type(a) not in _NUMBERS or not 0 <= a < math.inf for a in areas)
    annotations.mend('without "area", taken from the box', "area", {i: own[i] for i in wrong})


def _check_masks(annotations: Records) -> None:
    masks, keypoints = annotations.values("segmentation"), annotations.values("keypoints")
    annotations.fail(
        'whose "segmentation" is neither polygons nor a run-length encoding',
        _where(bool(m) and not _is_mask(m) for m in masks),
    )
    annotations.fail(
        'whose "keypoints" are not triples of numbers',
        _where(bool(k) and not (_are_numbers(k) and len(k) % 3 == 0) for k in keypoints),
    )


def _is_mask(mask: object) -> bool:
    if type(mask) is list:
        return all(map(_are_numbers, mask))
    if type(mask) is not dict:
        return False
    size, counts = mask.get("size"), mask.get("counts")
    return _are_counts(size) and len(size) == 2 and (type(counts) is str or _are_counts(counts))


def _are_counts(values: object) -> bool:
    return type(values) is list and all(type(v) is int and 0 <= v < _MAX_PIXELS for v in values)


def _are_numbers(values: object) -> bool:
    return type(values) is list and set(map(type, values)) <= _NUMBERS


def _check_box_format(annotations: Records, boxes: np.ndarray, sizes: np.ndarray) -> None:
    """Tell boxes in another format, of which all would be wrong."""
    rows = np.flatnonzero(np.isfinite(boxes).all(1) & np.isfinite(sizes).all(1))
    (x, y, w, h), (width, height) = boxes[rows].T, sizes[rows].T
    unit = (boxes[rows] >= 0).all(1) & (boxes[rows] <= 1).all(1) & (w > 0) & (h > 0)
    beyond = (x + w > width + 1) | (y + h > height + 1)
    corners = (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1)
    if 2 * unit.sum() > len(rows):
        annotations.fail(
            "whose boxes are shares of the image in 0..1; pixels are expected", rows[unit]
        )
    elif 2 * beyond.sum() > len(rows) and corners.sum() > 0.9 * len(rows):
        annotations.fail(
            "whose boxes look like [x1, y1, x2, y2] and leave the image as the expected "
            "[x, y, width, height]",
            rows[beyond],
        )


def _drop_useless(
    annotations: Records, boxes: np.ndarray, sizes: np.ndarray, unlisted: list[int]
) -> None:
    """Leave out the annotations that no image or no area belongs to."""
    (x, y, w, h), (width, height) = boxes.T, sizes.T
    with np.errstate(invalid="ignore", over="ignore"):
        outside = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
    annotations.drop("of images that are not listed", unlisted)
    annotations.drop("with a box that is not finite", np.flatnonzero(~np.isfinite(boxes).all(1)))
    annotations.drop("with a box without an area", np.flatnonzero((w <= 0) | (h <= 0)))
    annotations.drop("with a box outside of the image", np.flatnonzero(outside))
