"""Reading COCO-json files, with clear errors, and the records that they are made of."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .paths import datasets_root


def read_coco_json(path: Path) -> dict:
    """Read a file with COCO instance annotations, in UTF-8, UTF-16 or UTF-32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not json, or lacks images, annotations or named categories.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No COCO annotation file {path}. Relative paths are taken under "
            f"$DETECTRON2_DATASETS, now {datasets_root()}; datasets/README.md shows the layout."
        )
    try:
        coco = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a json file, or not all of one: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise ValueError(
                f"{path} is not a COCO annotation file: it has no list {key!r}. Expected an object "
                "with images, annotations and categories."
            )
    named = (isinstance(c, dict) and {"id", "name"} <= c.keys() for c in coco["categories"])
    if not coco["categories"] or not all(named):
        raise ValueError(f"{path}: every category needs an id and a name, and there must be one.")
    return coco


def categories_of(names: Iterable[str]) -> list[dict]:
    """COCO's categories of class names in their order, with ids 1, 2, ..."""
    return [{"id": i, "name": name} for i, name in enumerate(names, start=1)]


def add_annotation(
    annotations: list[dict], image_id: int, category_id: int, box: Sequence[float], **more
) -> None:
    """Add an object to a list of COCO's annotations, whose ids are 1, 2, ...

    COCO's evaluation takes id 0 for "no match".

    Args:
        annotations: what there is so far.
        box: x, y, width, height in pixels.
        more: further keys, and `iscrowd` if it is not 0.
    """
    annotations.append(
        {
            "id": len(annotations) + 1,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
            **more,
        }
    )


def is_plain_utf8(path: Path) -> bool:
    """Whether Detectron2's own loader, which knows no byte order mark, can read a json file."""
    with path.open("rb") as file:
        return json.detect_encoding(file.read(4)) == "utf-8"


def require_image_dir(path: Path) -> None:
    """Raise FileNotFoundError when there is no directory of images at `path`."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"No image directory {path}. Relative paths are taken under $DETECTRON2_DATASETS, now "
            f"{datasets_root()}; datasets/README.md shows the layout."
        )
