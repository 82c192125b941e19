"""Files of strangers: whatever is in them, the only errors are ours, and they stay as they are."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
from helpers.mutations import examples, is_ours, mutated_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aid_d2.config import default_config
from aid_d2.data.coco_check import check_coco
from aid_d2.data.kitti import KITTI_CLASSES, kitti_to_coco, read_splits
from aid_d2.data.own_data import register_own_data
from detectron2.data import DatasetCatalog, MetadataCatalog

_BOX = [1, 2, 3, 4]
_COCO = {
    "info": {},
    "images": [{"id": i, "file_name": "a.png", "width": 20, "height": 10} for i in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": _BOX, "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": _BOX, "area": 12, "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
}
_MASK = {"segmentation": [[1, 2, 4, 2, 4, 6]], "keypoints": [1, 2, 2], "ignore": 0}
_XML = (
    "<annotation><filename>a.png</filename><size><width>20</width><height>10</height></size>"
    "<object><name>car</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>"
    "<xmax>4</xmax><ymax>6</ymax></bndbox></object></annotation>"
)
_YAML = "path: .\ntrain: images\nnames: [car, bus]\n"
_KITTI = (
    "Car 0.00 0 -1.58 1.0 2.0 4.0 6.0 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
    "DontCare -1 -1 -10 5.0 1.0 9.0 8.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
)
_LABELS = "0 0.5 0.5 0.1 0.2\n1 0.5 0.5 1 1\n1 0.1 0.2 0.5 0.2 0.3 0.8\n"

_scalar = (
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.integers()
    | st.sampled_from([10**400, 2**63, 1e308, -0.0])
    | st.floats()
    | st.sampled_from(["", "1", "7", "x", "a.png", "b.png", "\0", "\ud800", "Infinity"])
    | st.text(max_size=4)
)
_json = st.recursive(
    _scalar,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def _places(value, path=()):
    """The path of each value inside of a json value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from _places(inner, (*path, key))


@st.composite
def _mutated_coco(draw):
    """_COCO with up to three values replaced or removed."""
    coco = copy.deepcopy(_COCO)
    if draw(st.booleans()):
        coco["annotations"][0].update(copy.deepcopy(_MASK))
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(list(_places(coco))))
        parent = coco
        for step in path:
            parent = parent[step]
        if draw(st.booleans()):
            parent[key] = draw(_json)
        else:
            del parent[key]
    return coco


def _register_and_load(key, files, source):
    """Register a folder with these files and an image; whatever happens, they are left alone.

    Returns:
        whether the data set loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for sub in ("", "images"):
            (root / sub).mkdir(exist_ok=True)
            Image.new("RGB", (20, 10)).save(root / sub / "a.png")
        for name, content in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)
        before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
        cfg = default_config()
        cfg.DATASETS[key] = [["mutated", *(str(root / s) if s != "train" else s for s in source)]]
        loaded = False
        try:
            register_own_data(cfg)
            loaded = len(DatasetCatalog.get("mutated")) > 0
        except (ValueError, FileNotFoundError) as error:
            assert is_ours(error, str(root)), f"not our message: {error!r}"
        finally:
            if "mutated" in DatasetCatalog:
                DatasetCatalog.remove("mutated")
            MetadataCatalog.pop("mutated", None)
        assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    return loaded


@examples
@given(_mutated_coco())
def test_coco_with_other_values(coco):
    _register_and_load("COCO_JSON", {"own.json": json.dumps(coco).encode()}, ("own.json", ""))


@examples
@given(mutated_bytes(json.dumps(_COCO).encode()))
def test_coco_with_other_bytes(content):
    _register_and_load("COCO_JSON", {"own.json": content}, ("own.json", ""))


@examples
@given(_mutated_coco())
def test_what_is_mended_has_no_problem(coco):
    kinds = ("images", "annotations", "categories")
    if all(isinstance(coco.get(kind), list) for kind in kinds):
        mended, problems = check_coco(coco)
        if not any(problem.fatal for problem in problems):
            assert check_coco(mended) == (mended, [])


@examples
@given(mutated_bytes(_XML.encode()))
def test_voc_with_other_bytes(content):
    _register_and_load("VOC", {"a.xml": content}, ("",))


@examples
@given(mutated_bytes(_LABELS.encode()))
def test_yolo_labels_with_other_bytes(content):
    _register_and_load("YOLO", {"a.txt": content, "classes.txt": b"car\nbus\n"}, ("",))


@examples
@given(mutated_bytes(_YAML.encode()))
def test_yolo_yaml_with_other_bytes(content):
    files = {"data.yaml": content, "labels/a.txt": _LABELS.encode()}
    _register_and_load("YOLO", files, ("data.yaml", "train"))


@examples
@given(
    mutated_bytes(_KITTI.encode()), st.sampled_from(["label_2/000001.txt", "../ImageSets/val.txt"])
)
def test_kitti_with_other_bytes(content, changed):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        training, lists = root / "training", root / "ImageSets"
        for sub in (training / "image_2", training / "label_2", lists):
            sub.mkdir(parents=True)
        for frame, split in (("000001", "train"), ("000002", "val")):
            Image.new("RGB", (20, 10)).save(training / "image_2" / f"{frame}.png")
            (training / "label_2" / f"{frame}.txt").write_text(_KITTI)
            (lists / f"{split}.txt").write_text(frame)
        (training / changed).write_bytes(content)
        before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
        try:
            kitti_to_coco(root, read_splits(root)["trainval"], KITTI_CLASSES)
        except (ValueError, FileNotFoundError) as error:
            assert is_ours(error, str(root)), f"not our message: {error!r}"
        assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("key", ["COCO_JSON", "VOC", "YOLO"])
def test_unmutated_files_load(key):
    """Else the tests above would see the first error alone."""
    register = {
        "COCO_JSON": ({"own.json": json.dumps(_COCO).encode()}, ("own.json", "")),
        "VOC": ({"a.xml": _XML.encode()}, ("",)),
        "YOLO": (
            {"data.yaml": _YAML.encode(), "labels/a.txt": _LABELS.encode()},
            ("data.yaml", "train"),
        ),
    }
    assert _register_and_load(key, *register[key])
