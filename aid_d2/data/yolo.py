"""YOLO's txt annotations as COCO's."""

import os
from collections import defaultdict
from pathlib import Path

import yaml

from .coco_file import add_annotation, categories_of
from .image_check import UNREADABLE, files_under, size_of
from .problems import Fault, Problem, problems_of

_FORMAT = "lines that are neither `class x y width height` nor `class` and a polygon"
# What rounding and boxes at the edge of an image leave.
_TOLERANCE = 0.01


def read_yolo(source: Path, split: str | None = None) -> tuple[dict, Path, list[Problem]]:
    """Read annotations in the format of YOLO.

    Args:
        source: a data.yaml, with `names` and with `split` as a key for folders or lists of images,
            or a folder of images with classes.txt. The labels of images/a.jpg are labels/a.txt, or
            a.txt beside the image; an image without that file has no objects.
        split: a key of data.yaml such as train or val. Without it, all images of the folder.

    Returns:
        annotations in COCO's format; the directory that their file names are relative to; and what
        is wrong with them.

    Raises:
        FileNotFoundError: there is no class list, or there are no images or no labels.
        ValueError: the class list cannot be read, a folder is asked for a split, or the labels are
            of keypoints.
    """
    if source.is_dir() and split is not None:
        raise ValueError(
            f"{source} is a folder, which has no split {split!r}: name its data.yaml instead."
        )
    if source.is_dir():
        names, images, root = _read_class_list(source), files_under(source), source
    else:
        names, images = _read_yaml(source, split)
        root = source.parent
    if not images:
        where = f"in the split {split!r} of" if split else "in"
        raise FileNotFoundError(f"No images {where} {source}.")
    labels = [_label_file(image) for image in images]
    if not any(label.is_file() for label in labels):
        raise FileNotFoundError(f"No label file for any image of {source}, such as {labels[0]}.")
    coco, problems = _convert(images, labels, names, root)
    return coco, root, problems


def _read_class_list(folder: Path) -> list[str]:
    file = folder / "classes.txt"
    if not file.is_file():
        raise FileNotFoundError(
            f"No class list {file}. Write one class a line, or name a data.yaml instead of the "
            "folder."
        )
    return _lines_of(file)


def _read_yaml(file: Path, split: str | None) -> tuple[list[str], list[Path]]:
    """Returns the class names and the images of a split."""
    if not file.is_file():
        raise FileNotFoundError(f"No YOLO data set {file}: expected a data.yaml or a folder.")
    try:
        data = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a yaml file: {error}") from error
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, dict) and names.keys() == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file} has no `names`: a list of classes, or {{0: name, 1: name, ...}}.")
    if "kpt_shape" in data:
        raise ValueError(
            f"{file} is of keypoints (`kpt_shape`), whose labels are no boxes alone: write "
            "`class x y width height` in each line, and take the key out."
        )
    places = data.get(split)
    places = [places] if isinstance(places, str) else places
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise ValueError(
            f"{file} has no key {split!r} with a folder of images; the entry of DATASETS.YOLO is "
            "[name, data.yaml, split]."
        )
    root = file.parent / str(data.get("path") or "")
    return list(map(str, names)), [image for p in places for image in _images_at(file, root, p)]


def _images_at(file: Path, root: Path, place: str) -> list[Path]:
    """The images of a folder or list, looked for where different tools mean it to be."""
    inside = place.removeprefix("../")
    for path in (root / place, file.parent / place, root / inside, file.parent / inside):
        if path.is_dir():
            return files_under(path)
        if path.is_file():
            return [path.parent / line for line in _lines_of(path)]
    raise FileNotFoundError(f"{file} names {place!r}, but there is no {root / place}.")


def _lines_of(file: Path) -> list[str]:
    lines = file.read_text("utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _label_file(image: Path) -> Path:
    """labels/a.txt of images/a.jpg, if it exists, else a.txt beside the image."""
    parts = list(image.with_suffix(".txt").parts)
    beside = Path(*parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    elsewhere = Path(*parts)
    return elsewhere if elsewhere.is_file() else beside


def _convert(
    images: list[Path], labels: list[Path], names: list[str], root: Path
) -> tuple[dict, list[Problem]]:
    listed: list[dict] = []
    annotations: list[dict] = []
    faults: dict[str, list[str]] = defaultdict(list)
    for image_id, (image, label) in enumerate(zip(images, labels), start=1):
        try:
            width, height = size_of(image)
        except Exception:  # Pillow raises of all kinds for broken files
            faults[UNREADABLE].append(str(image))
            continue
        size = {"width": width, "height": height}
        listed.append({"id": image_id, "file_name": os.path.relpath(image, root), **size})
        for number, line in enumerate(_labels(label, faults), start=1):
            if not line.strip():
                continue
            try:
                category, x1, y1, x2, y2 = _parse(line, len(names))
            except Fault as fault:
                faults[str(fault)].append(f"{label}:{number}")
                continue
            box = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
            add_annotation(annotations, image_id, category, box)
    coco = {"images": listed, "annotations": annotations, "categories": categories_of(names)}
    return coco, problems_of(faults)


def _labels(label: Path, faults: dict[str, list[str]]) -> list[str]:
    try:
        return label.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        faults["label files that are no text"].append(str(label))
        return []


def _parse(line: str, num_classes: int) -> tuple[int, float, float, float, float]:
    """Returns category and corners, as shares of the image, of the box or around the polygon."""
    try:
        class_, *values = map(float, line.split())
    except ValueError:
        raise Fault(_FORMAT) from None
    if len(values) < 4 or len(values) % 2:
        raise Fault(_FORMAT)
    if class_ not in range(num_classes):
        raise Fault(f"lines with a class that is not one of 0..{num_classes - 1}")
    if not all(-_TOLERANCE <= v <= 1 + _TOLERANCE for v in values):
        raise Fault("lines with a number outside of 0..1")
    if len(values) == 4:
        x, y, w, h = values
        return int(class_) + 1, x - w / 2, y - h / 2, x + w / 2, y + h / 2
    xs, ys = values[::2], values[1::2]
    return int(class_) + 1, min(xs), min(ys), max(xs), max(ys)
