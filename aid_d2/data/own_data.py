"""Registering a user's own data sets: COCO json, Pascal VOC, YOLO.

All become COCO json, are checked, and are read by Detectron2's own loader. What is not already
sound COCO json is written to a temporary directory that goes with the process: the user's folders
stay as they are, and loader and `COCOEvaluator` see the same annotations.
"""

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..config import CONFIG_EXTENSIONS
from .classes import parse_classes, require_known, select_classes
from .coco_check import check_coco
from .coco_file import is_plain_utf8, read_coco_json, require_image_dir
from .image_check import check_images
from .paths import datasets_root, temporary_dir
from .problems import settle
from .voc import read_voc
from .yolo import read_yolo

logger = logging.getLogger(__name__)

# How many images of a data set are looked at when it is registered.
IMAGE_SAMPLE = 32

_FORMS = {
    "COCO_JSON": "[name, json_path, image_dir]",
    "VOC": "[name, folder] or [name, folder, split]",
    "YOLO": "[name, data.yaml, split] or [name, folder]",
}


def add_config(cfg: CfgNode) -> None:
    """Add the keys for own data sets; :func:`register_own_data` reads them."""
    # Data sets in COCO's format: a list of [name, json file, image folder]. Relative paths here and
    # below are under $DETECTRON2_DATASETS.
    cfg.DATASETS.COCO_JSON = []
    # Data sets in Pascal VOC's format: a list of [name, folder] or [name, folder, split].
    cfg.DATASETS.VOC = []
    # Data sets in YOLO's format: a list of [name, data.yaml, split] or [name, folder].
    cfg.DATASETS.YOLO = []
    # Classes of all own data sets, in this order: a name, or [class, name in the data, ...]. Empty
    # keeps the classes of each data set.
    cfg.DATASETS.CLASSES = []


CONFIG_EXTENSIONS.append(add_config)


class _Entry(NamedTuple):
    """An entry of DATASETS.<key>: what follows the name there is `source`."""

    key: str
    name: str
    source: tuple[str, ...]

    def __str__(self) -> str:
        return f"Data set {self.name!r} ({', '.join(self.source)})"


class _OwnSet(NamedTuple):
    """A user's data set in COCO's format; `json_file` holds exactly that, if there is one."""

    entry: _Entry
    coco: dict
    image_root: Path
    json_file: Path | None = None


def register_own_data(cfg: CfgNode, image_sample: int = IMAGE_SAMPLE) -> None:
    """Check and register the data sets that DATASETS.COCO_JSON, VOC and YOLO list.

    Asking again for the same data sets does nothing. Relative paths are taken under
    $DETECTRON2_DATASETS.

    Args:
        image_sample: how many images of each set are opened.

    Raises:
        FileNotFoundError: a file or a directory is missing.
        ValueError: an entry has another form, a name is taken, or a data set has faults that cannot
            be mended. One message has all faults in the annotations of a data set.
    """
    listed = {key: getattr(cfg.DATASETS, key) for key in _FORMS}
    _register_listed(listed, parse_classes(cfg.DATASETS.CLASSES), image_sample)


def own_names(cfg: CfgNode) -> list[str]:
    """The names of the data sets that :func:`register_own_data` registers."""
    return [entry[0] for key in _FORMS for entry in getattr(cfg.DATASETS, key)]


def register_coco_json(entries: Iterable[Sequence[str]]) -> None:
    """:func:`register_own_data` for (name, json file, image directory) each."""
    _register_listed({"COCO_JSON": entries}, {}, IMAGE_SAMPLE)


def _register_listed(
    listed: dict[str, Iterable[Sequence[str]]], class_of: dict[str, str], image_sample: int
) -> None:
    entries = dict.fromkeys(_parse_entry(key, entry) for key in listed for entry in listed[key])
    for name, times in Counter(entry.name for entry in entries).items():
        if times > 1:
            raise ValueError(f"DATASETS lists {times} data sets {name!r}: give each another name.")
    new = [entry for entry in entries if not _is_registered(entry, class_of)]
    if not new:
        return
    # Those registered before are read again: classes are chosen from the names of all sets.
    for own in _with_classes([_read(entry) for entry in entries], class_of):
        if own.entry in new:
            _check_images(own, image_sample)
            _register(own, class_of)
        elif MetadataCatalog.get(own.entry.name).thing_classes != _names(own.coco):
            raise _taken(own.entry)  # a VOC set, whose classes are those of all VOC sets


def _parse_entry(key: str, entry: object) -> _Entry:
    lengths = (3,) if key == "COCO_JSON" else (2, 3)
    is_list = isinstance(entry, (list, tuple))
    if not is_list or len(entry) not in lengths or not all(isinstance(e, str) for e in entry):
        raise ValueError(f"DATASETS.{key} has the entry {entry!r}; expected {_FORMS[key]}.")
    return _Entry(key, entry[0], tuple(entry[1:]))


def _is_registered(entry: _Entry, class_of: dict[str, str]) -> bool:
    if entry.name not in DatasetCatalog:
        return False
    if MetadataCatalog.get(entry.name).get("own_data") != (entry, tuple(class_of.items())):
        raise _taken(entry)
    return True


def _taken(entry: _Entry) -> ValueError:
    return ValueError(
        f"The data set name {entry.name!r} in DATASETS.{entry.key} is already registered, with "
        "other paths or classes: choose another name."
    )


def _read(entry: _Entry) -> _OwnSet:
    """Read the annotations of a data set, checked and mended."""
    path = datasets_root() / Path(entry.source[0]).expanduser()
    json_file, faults = None, []
    if entry.key == "COCO_JSON":
        image_root = datasets_root() / Path(entry.source[1]).expanduser()
        coco = read_coco_json(path)
        require_image_dir(image_root)
        json_file = path if is_plain_utf8(path) else None
    elif entry.key == "VOC":
        require_image_dir(path)
        coco, image_root, faults = read_voc(path, *entry.source[1:])
    else:
        coco, image_root, faults = read_yolo(path, *entry.source[1:])
    mended, problems = check_coco(coco)
    settle(entry, faults + problems)
    return _OwnSet(entry, mended, image_root, json_file if mended is coco else None)


def _with_classes(sets: list[_OwnSet], class_of: dict[str, str]) -> list[_OwnSet]:
    """Choose the classes of all sets; VOC, which lists none, has those that are found."""
    if class_of:
        require_known(class_of, sorted({name for own in sets for name in _names(own.coco)}))
    voc = sorted({name for own in sets if own.entry.key == "VOC" for name in _names(own.coco)})
    result = []
    for own in sets:
        wanted = class_of or (dict(zip(voc, voc)) if own.entry.key == "VOC" else None)
        names = _names(own.coco)
        # What has the classes already, as labels of a teacher have, is left as it is.
        if wanted and (
            names != list(dict.fromkeys(wanted.values()))
            or any(wanted.get(name, name) != name for name in names)
        ):
            coco, left_out = select_classes(own.coco, wanted)
            settle(own.entry, left_out)
            own = own._replace(coco=coco, json_file=None)
        result.append(own)
    return result


def _names(coco: dict) -> list[str]:
    # Detectron2's loader orders the classes by id, and refuses to be told another order.
    return [c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])]


def _check_images(own: _OwnSet, sample: int) -> None:
    records = [
        {**image, "file_name": os.path.join(own.image_root, image["file_name"])}
        for image in own.coco["images"]
    ]
    settle(own.entry, check_images(records, sample))


def _register(own: _OwnSet, class_of: dict[str, str]) -> None:
    if not own.coco["categories"]:
        raise ValueError(f"{own.entry} has no classes: it names none, and has no objects.")
    json_file = own.json_file or _write_json(own.coco)
    asked_for = own.entry, tuple(class_of.items())
    metadata = {"thing_classes": _names(own.coco), "own_data": asked_for}
    register_coco_instances(own.entry.name, metadata, str(json_file), str(own.image_root))
    boxes = Counter(annotation["category_id"] for annotation in own.coco["annotations"])
    classes = ", ".join(f"{c['name']} {boxes[c['id']]}" for c in own.coco["categories"])
    logger.info("%s: %d images; boxes: %s", own.entry, len(own.coco["images"]), classes)


def _write_json(coco: dict) -> str:
    handle, path = tempfile.mkstemp(suffix=".json", dir=temporary_dir().name)
    with os.fdopen(handle, "w") as file:
        json.dump(coco, file)
    return path
