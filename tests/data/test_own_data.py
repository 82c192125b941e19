import hashlib
import json
import logging
import re

import pytest
from PIL import Image

from aid_d2.config import default_config
from aid_d2.data import register_coco_json
from aid_d2.data.own_data import own_names, register_own_data
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator


@pytest.fixture(autouse=True)
def catalogs():
    """Forget what a test registers."""
    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@pytest.fixture
def coco():
    """One image and two boxes; the categories are out of order, their ids not contiguous."""
    rest = {"image_id": 7, "area": 12, "iscrowd": 0}
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 20, "height": 10}],
        "annotations": [
            {"id": 1, "category_id": 9, "bbox": [1, 2, 3, 4], **rest},
            {"id": 2, "category_id": 4, "bbox": [5, 0, 6, 2], **rest},
        ],
        "categories": [{"id": 9, "name": "tram"}, {"id": 4, "name": "bus"}],
    }


@pytest.fixture
def write(tmp_path):
    """Writes a json file and its image; returns an entry of DATASETS.COCO_JSON."""

    def make(content, name="own_train"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / "images" / "a.jpg")
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / f"{name}.json").write_text(text)
        return [name, str(tmp_path / f"{name}.json"), str(tmp_path / "images")]

    return make


def _cfg(**keys):
    cfg = default_config()
    for key, value in keys.items():
        cfg.DATASETS[key] = value
    return cfg


def _hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_sound_file_is_read_by_detectron2_as_it_is(write, coco):
    entry = write(coco)
    register_coco_json([entry])
    metadata = MetadataCatalog.get("own_train")
    assert metadata.thing_classes == ["bus", "tram"] and metadata.evaluator_type == "coco"
    assert metadata.json_file == entry[1]
    (record,) = DatasetCatalog.get("own_train")
    assert record["file_name"] == f"{entry[2]}/a.jpg"
    assert [a["category_id"] for a in record["annotations"]] == [1, 0]


def test_a_mended_file_is_seen_alike_by_loader_and_evaluator(write, coco, tmp_path, caplog):
    coco["annotations"][1]["bbox"][2] = 0
    coco["images"][0]["id"] = coco["annotations"][0]["image_id"] = "seven"
    coco["annotations"][1]["image_id"] = "seven"
    entry, before = write(coco), _hashes(tmp_path)
    with caplog.at_level(logging.WARNING):
        register_coco_json([entry])
    assert "without an area, left out: 1 (id 2 (a.jpg))" in caplog.text
    (record,) = DatasetCatalog.get("own_train")
    assert [a["bbox"] for a in record["annotations"]] == [[1, 2, 3, 4]]
    truth = COCOEvaluator("own_train", output_dir=None)._coco_api
    assert truth.getImgIds() == [record["image_id"]]
    assert [a["bbox"] for a in truth.loadAnns(truth.getAnnIds())] == [[1, 2, 3, 4]]
    assert _hashes(tmp_path) == before, "the user's folder stays as it is"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read(write, coco, encoding):
    entry = write(coco)
    with open(entry[1], "w", encoding=encoding) as file:
        json.dump(coco, file)
    register_coco_json([entry])
    assert len(DatasetCatalog.get("own_train")[0]["annotations"]) == 2


def test_all_faults_of_a_file_are_in_one_message(write, coco):
    del coco["annotations"][0]["bbox"], coco["images"][0]["height"]
    entry = write(coco)
    with pytest.raises(ValueError) as error:
        register_coco_json([entry])
    assert "own_train.json" in str(error.value) and "own_train" not in DatasetCatalog
    assert 'annotations without "bbox": 1 (id 1)' in str(error.value)
    assert 'images without "height": 1 (id 7 (a.jpg))' in str(error.value)


def test_images_that_do_not_fit_are_found(write, coco):
    coco["images"][0].update(width=10, height=20)
    entry = write(coco)
    with pytest.raises(ValueError, match=r"width and height swapped: 1 \(.*a.jpg\)"):
        register_coco_json([entry])


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("", "is not a json file"),
        ('{"images": [', "is not a json file, or not all of one"),
        ("[1]", "it has no list 'images'"),
        ('{"images": [], "categories": []}', "it has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "there must be one"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "an id and a name"),
    ],
)
def test_other_files_are_refused(write, content, complaint):
    entry = write(content)
    with pytest.raises(ValueError, match=re.escape(entry[1]) + ".*" + complaint):
        register_coco_json([entry])
    assert "own_train" not in DatasetCatalog


def test_missing_paths_are_named(write, coco, tmp_path):
    name, json_file, _ = write(coco)
    with pytest.raises(FileNotFoundError, match="No image directory .*nowhere.*DETECTRON2"):
        register_coco_json([(name, json_file, str(tmp_path / "nowhere"))])
    with pytest.raises(FileNotFoundError, match="No COCO annotation file .*no_such.json"):
        register_coco_json([(name, "no_such.json", str(tmp_path))])


def test_same_entry_twice_is_fine_another_under_its_name_is_not(write, coco, tmp_path):
    entry = write(coco)
    register_coco_json([entry, tuple(entry)])
    register_own_data(_cfg(COCO_JSON=[entry]))
    with pytest.raises(ValueError, match="'own_train' in DATASETS.COCO_JSON is already regis"):
        register_coco_json([(entry[0], entry[1], str(tmp_path))])
    with pytest.raises(ValueError, match="lists 2 data sets 'own_train'"):
        register_own_data(_cfg(COCO_JSON=[entry], VOC=[["own_train", str(tmp_path)]]))
    with pytest.raises(ValueError, match="'own_train' .* other paths or classes"):
        register_own_data(_cfg(COCO_JSON=[entry], CLASSES=["tram"]))
    register_own_data(_cfg(COCO_JSON=[write(coco, "other")], CLASSES=["tram", "bus"]))
    with pytest.raises(ValueError, match="'other' .* other paths or classes"):
        register_own_data(_cfg(COCO_JSON=[write(coco, "other")], CLASSES=["bus", "tram"]))
    with pytest.raises(ValueError, match="'kitti_val' .* already registered"):
        register_coco_json([("kitti_val", *entry[1:])])


@pytest.mark.parametrize("entry", ["abc", ["name", "file.json"], ["name", "file.json", 3], 5])
def test_malformed_entries_are_shown(entry):
    with pytest.raises(ValueError, match=r"expected \[name, json_path, image_dir\]"):
        register_coco_json([entry])
    with pytest.raises(ValueError, match=r"expected \[name, folder\] or"):
        register_own_data(_cfg(VOC=[["name"]]))


def test_chosen_classes_come_in_the_order_asked_for(write, coco, caplog):
    with caplog.at_level(logging.WARNING):
        register_own_data(_cfg(COCO_JSON=[write(coco)], CLASSES=["tram"]))
    assert "objects of class 'bus', left out by DATASETS.CLASSES: 1 (a.jpg)" in caplog.text
    assert MetadataCatalog.get("own_train").thing_classes == ["tram"]
    (record,) = DatasetCatalog.get("own_train")
    assert [(a["category_id"], a["bbox"]) for a in record["annotations"]] == [(0, [1, 2, 3, 4])]


def test_classes_are_renamed_and_joined(write, coco):
    coco["categories"].append({"id": 11, "name": "ship"})
    classes = ["ship", ["public transport", "bus", "tram"]]
    register_own_data(_cfg(COCO_JSON=[write(coco)], CLASSES=classes))
    assert MetadataCatalog.get("own_train").thing_classes == ["ship", "public transport"]
    (record,) = DatasetCatalog.get("own_train")
    assert [a["category_id"] for a in record["annotations"]] == [1, 1]


def test_swapped_names_are_set_right(write, coco):
    """Though the names that come out are those of the data."""
    register_own_data(_cfg(COCO_JSON=[write(coco)], CLASSES=[["bus", "tram"], ["tram", "bus"]]))
    assert MetadataCatalog.get("own_train").thing_classes == ["bus", "tram"]
    (record,) = DatasetCatalog.get("own_train")
    ids = [a["category_id"] for a in coco["annotations"]]
    names = {c["id"]: c["name"] for c in coco["categories"]}
    expected = [{"bus": 1, "tram": 0}[names[i]] for i in ids]
    assert [a["category_id"] for a in record["annotations"]] == expected


def test_what_has_the_classes_already_keeps_them(write, coco):
    """Labels that a teacher made are beside the data it was trained on, whose names are others."""
    labels = {**coco, "categories": [{"id": 9, "name": "vehicle"}, {"id": 4, "name": "tram"}]}
    labels["categories"].sort(key=lambda x: x["id"])
    entries = [write(coco), write(labels, "pseudo")]
    register_own_data(_cfg(COCO_JSON=entries, CLASSES=["tram", ["vehicle", "bus"]]))
    assert MetadataCatalog.get("pseudo").thing_classes == ["tram", "vehicle"]
    (record,) = DatasetCatalog.get("pseudo")
    assert [a["category_id"] for a in record["annotations"]] == [1, 0]


@pytest.mark.parametrize(
    "classes, complaint",
    [
        (["trams"], "names 'trams', .* Did you mean 'tram'\\? They have bus, tram"),
        (["bus", ["coach", "bus"]], "'bus' twice"),
        ([["bus"]], "expected a name, or"),
        ([[]], "expected a name, or"),
        ([7], "expected a name, or"),
    ],
)
def test_classes_that_make_no_sense_are_refused(write, coco, classes, complaint):
    with pytest.raises(ValueError, match=complaint):
        register_own_data(_cfg(COCO_JSON=[write(coco)], CLASSES=classes))
    assert "own_train" not in DatasetCatalog


def _write_voc(folder, name):
    folder.mkdir()
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>"
    (folder / "a.xml").write_text(
        f"<annotation><object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
    )


def test_voc_sets_of_a_config_share_their_classes(tmp_path, caplog):
    # One of them may lack objects of a class.
    _write_voc(tmp_path / "train", "car")
    _write_voc(tmp_path / "val", "bus")
    before = _hashes(tmp_path)
    entries = [[f"own_{split}", str(tmp_path / split)] for split in ("train", "val")]
    cfg = _cfg(VOC=entries)
    with caplog.at_level(logging.INFO):
        register_own_data(cfg)
    assert own_names(cfg) == ["own_train", "own_val"]
    assert "1 images; boxes: bus 0, car 1" in caplog.text
    for name, category in (("own_train", 1), ("own_val", 0)):
        assert MetadataCatalog.get(name).thing_classes == ["bus", "car"]
        (record,) = DatasetCatalog.get(name)
        assert record["annotations"][0]["category_id"] == category
        assert record["annotations"][0]["bbox"] == [0, 0, 4, 4]
    assert _hashes(tmp_path) == before
    _write_voc(tmp_path / "more", "tram")
    with pytest.raises(ValueError, match="'own_train' .* already registered"):
        register_own_data(_cfg(VOC=[*entries, ["own_more", str(tmp_path / "more")]]))


def test_yolo_sets_load(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    register_own_data(_cfg(YOLO=[["own_train", str(tmp_path)]]))
    assert MetadataCatalog.get("own_train").thing_classes == ["zebra", "ant"]
    (record,) = DatasetCatalog.get("own_train")
    assert record["file_name"] == str(tmp_path / "a.png")
    assert record["annotations"][0]["category_id"] == 1
    assert record["annotations"][0]["bbox"] == [5, 2.5, 10, 5]


def test_faults_of_voc_and_yolo_stop_the_registration(tmp_path):
    _write_voc(tmp_path / "voc", "")
    with pytest.raises(ValueError, match=r"object without <name>: 1 \(a.xml\)"):
        register_own_data(_cfg(VOC=[["own_train", str(tmp_path / "voc")]]))
    (tmp_path / "voc" / "a.xml").write_text("<annotation></annotation>")
    with pytest.raises(ValueError, match="'own_train' .* has no classes"):
        register_own_data(_cfg(VOC=[["own_train", str(tmp_path / "voc")]]))
    with pytest.raises(FileNotFoundError, match="No image directory .*none"):
        register_own_data(_cfg(VOC=[["own_train", str(tmp_path / "none")]]))
