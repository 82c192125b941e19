"""Registers KITTI, COCO-traffic and the synthetic road scenes with Detectron2's catalogs.

A process converts each to a temporary COCO-json file when it first asks for it, and Detectron2's
own loader reads that. The metadata names the file by `aid_d2://<data set>`, which Detectron2's
PathManager resolves. `COCOEvaluator` therefore evaluates on the labels as they are. Without a file
it would take those that an earlier run left in OUTPUT_DIR, and areas of boxes for those of COCO.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from iopath.common.file_io import PathHandler

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.utils.file_io import PathManager

from .coco_json import read_coco_json, require_image_dir
from .coco_traffic import coco_traffic_classes, filter_coco_traffic
from .kitti import (
    EXTRA_ANNOTATION_KEYS,
    KITTI_8_CLASSES,
    KITTI_CLASSES,
    kitti_to_coco,
    read_splits,
)
from .paths import datasets_root

_PREFIX = "aid_d2://"
# What makes the COCO dict of each registered data set.
_CONVERSIONS: dict[str, Callable[[], dict]] = {}


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Of this process; gone when it ends."""
    return tempfile.TemporaryDirectory(prefix="aid_d2-")


@cache
def _converted(name: str) -> str:
    """Path of the json file of a data set."""
    path = Path(_folder().name) / f"{name}.json"
    path.write_text(json.dumps(_CONVERSIONS[name]()))
    return str(path)


class _ConvertedJsonHandler(PathHandler):
    """Resolves `aid_d2://<data set>` to its COCO-json file."""

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return _converted(path.removeprefix(_PREFIX))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


def _convert_kitti(root: Path, split: str, classes: Sequence[str]) -> dict:
    return kitti_to_coco(root, read_splits(root)[split], classes)


def _convert_coco_traffic(json_file: Path, image_root: Path, num_classes: int) -> dict:
    require_image_dir(image_root)
    coco = read_coco_json(json_file)
    try:
        return filter_coco_traffic(coco, num_classes)
    except ValueError as error:
        raise ValueError(f"{json_file}: {error}.") from error


def _register(
    name, conversion, image_root: Path, classes: dict[int, str], extra_keys=None, **metadata
) -> None:
    json_file = f"{_PREFIX}{name}"
    _CONVERSIONS[name] = conversion
    DatasetCatalog.register(
        name, partial(load_coco_json, json_file, str(image_root), name, extra_keys)
    )
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=str(image_root),
        evaluator_type="coco",
        thing_classes=list(classes.values()),
        thing_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(classes)},
        **metadata,
    )


def _register_kitti(name: str, folder: str, split: str, classes: Sequence[str]) -> None:
    root = datasets_root() / folder
    conversion = partial(_convert_kitti, root, split, classes)
    ids = dict(enumerate(classes, start=1))
    images = root / "training" / "image_2"
    _register(name, conversion, images, ids, EXTRA_ANNOTATION_KEYS, kitti_layout=True)


def _register_all() -> None:
    PathManager.register_handler(_ConvertedJsonHandler())
    coco = datasets_root() / "coco"
    for split in ("train", "val", "trainval"):
        _register_kitti(f"kitti_{split}", "kitti", split, KITTI_CLASSES)
        _register_kitti(f"kitti_8class_{split}", "kitti", split, KITTI_8_CLASSES)
    for split in ("train", "val"):
        _register_kitti(f"synthetic_road_{split}", "synthetic_road", split, KITTI_CLASSES)
        json_file, images = coco / f"annotations/instances_{split}2017.json", coco / f"{split}2017"
        for prefix, num_classes in (("coco_traffic", 13), ("coco_traffic_11class", 11)):
            conversion = partial(_convert_coco_traffic, json_file, images, num_classes)
            classes = coco_traffic_classes(num_classes)
            _register(f"{prefix}_2017_{split}", conversion, images, classes)
    register_coco_instances(
        "coco_2017_unlabeled",
        {},
        str(coco / "annotations/image_info_unlabeled2017.json"),
        str(coco / "unlabeled2017"),
    )


_register_all()
