"""COCO-json files: reading them with clear errors, and registering a user's own."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .paths import datasets_root


def read_coco_json(path: Path) -> dict:
    """Reads a file with COCO instance annotations.

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
        coco = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a json file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise ValueError(
                f"{path} is not a COCO annotation file: it has no list {key!r}. Expected an object "
                "with images, annotations and categories."
            )
    if not coco["categories"] or not all({"id", "name"} <= c.keys() for c in coco["categories"]):
        raise ValueError(f"{path}: every category needs an id and a name, and there must be one.")
    return coco


def require_image_dir(path: Path) -> None:
    """Raises FileNotFoundError when there is no directory of images at `path`."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"No image directory {path}. Relative paths are taken under $DETECTRON2_DATASETS, now "
            f"{datasets_root()}; datasets/README.md shows the layout."
        )


def register_coco_json(entries: Iterable[Sequence[str]]) -> None:
    """Registers data sets given in COCO's format, as the config key DATASETS.COCO_JSON lists them.

    Asking again for the same data set does nothing.

    Args:
        entries: (name, json file, image directory) each; relative paths are taken under
            $DETECTRON2_DATASETS.

    Raises:
        FileNotFoundError: the file or the directory is missing.
        ValueError: an entry is not of three strings, the file is not in COCO's format, or the name
            is taken by another data set.
    """
    for entry in entries:
        is_list = isinstance(entry, (list, tuple))
        if not is_list or len(entry) != 3 or not all(isinstance(e, str) for e in entry):
            raise ValueError(
                f"DATASETS.COCO_JSON has the entry {entry!r}; expected "
                "[name, json_path, image_dir]."
            )
        name, *paths = entry
        json_file, image_root = (datasets_root() / Path(p).expanduser() for p in paths)
        if name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            registered = (metadata.get("json_file"), metadata.get("image_root"))
            if registered != (str(json_file), str(image_root)):
                raise ValueError(
                    f"The data set name {name!r} in DATASETS.COCO_JSON is already registered, for "
                    f"{registered[0]} and {registered[1]}: choose another name."
                )
            continue
        coco = read_coco_json(json_file)
        require_image_dir(image_root)
        # load_coco_json orders the classes by id, and would refuse another order here.
        classes = [c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])]
        metadata = {"thing_classes": classes}
        register_coco_instances(name, metadata, str(json_file), str(image_root))
