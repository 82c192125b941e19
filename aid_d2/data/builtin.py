"""Registers KITTI, COCO-traffic and the synthetic road scenes with Detectron2's catalogs.

Each is converted to a COCO-json file in the user's cache, when it is first asked for, and read
back by Detectron2's own loader. The metadata names that file by `aid_d2://<data set>`, which
Detectron2's PathManager turns into the path of an up-to-date file: so the loader and
`COCOEvaluator` both see the present annotations, whichever comes first. Code that reads the file
itself asks
`PathManager.get_local_path(MetadataCatalog.get(name).json_file)`.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from iopath.common.file_io import PathHandler

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.utils.file_io import PathManager

from .cache import cache_dir, cached_coco_json, fingerprint
from .coco_json import read_coco_json, require_image_dir
from .coco_traffic import coco_traffic_classes, filter_coco_traffic
from .kitti import (
    EXTRA_ANNOTATION_KEYS,
    KITTI_8_CLASSES,
    KITTI_CLASSES,
    frame_files,
    kitti_to_coco,
    read_splits,
)
from .paths import datasets_root

_PREFIX = "aid_d2://"
# What each registered data set is converted by: returns (fingerprint, builder of the COCO dict).
_CONVERSIONS: dict[str, Callable[[], tuple[str, Callable[[], dict]]]] = {}


class _ConvertedJsonHandler(PathHandler):
    """Resolves `aid_d2://<data set>` to its COCO-json file, made first if needed."""

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path.removeprefix(_PREFIX)
        # One cache serves several data roots.
        root = hashlib.sha256(str(datasets_root().resolve()).encode()).hexdigest()[:8]
        key, build = _CONVERSIONS[name]()
        return str(cached_coco_json(cache_dir() / f"{name}-{root}.json", key, build))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


def _convert_kitti(root: Path, split: str, classes: Sequence[str]):
    ids = read_splits(root)[split]
    files = (file for pair in frame_files(root, ids) for file in pair)
    return fingerprint([ids, classes], files), partial(kitti_to_coco, root, ids, classes)


def _convert_coco_traffic(json_file: Path, image_root: Path, num_classes: int):
    require_image_dir(image_root)

    def build() -> dict:
        coco = read_coco_json(json_file)
        try:
            return filter_coco_traffic(coco, num_classes)
        except ValueError as error:
            raise ValueError(f"{json_file}: {error}.") from error

    sources = [json_file] if json_file.is_file() else []  # its absence is reported by `build`
    return fingerprint(num_classes, sources), build


def _register(
    name, conversion, image_root: Path, classes: dict[int, str], evaluator: str, extra_keys=None
) -> None:
    json_file = f"{_PREFIX}{name}"
    _CONVERSIONS[name] = conversion
    DatasetCatalog.register(
        name, partial(load_coco_json, json_file, str(image_root), name, extra_keys)
    )
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=str(image_root),
        evaluator_type=evaluator,
        thing_classes=list(classes.values()),
        thing_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(classes)},
    )


def _register_kitti(name: str, folder: str, split: str, classes: Sequence[str]) -> None:
    root = datasets_root() / folder
    conversion = partial(_convert_kitti, root, split, classes)
    ids = dict(enumerate(classes, start=1))
    _register(name, conversion, root / "training" / "image_2", ids, "kitti", EXTRA_ANNOTATION_KEYS)


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
            _register(f"{prefix}_2017_{split}", conversion, images, classes, "coco")
    register_coco_instances(
        "coco_2017_unlabeled",
        {},
        str(coco / "annotations/image_info_unlabeled2017.json"),
        str(coco / "unlabeled2017"),
    )


_register_all()
