import json
import re

import pytest

from aid_d2.data import register_coco_json
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def own_set(tmp_path):
    """Returns (name, json file, image directory) of a set whose categories are out of order."""
    (tmp_path / "images").mkdir()
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 20, "height": 10}],
        "annotations": [
            {**dict(id=1, image_id=7, category_id=9, iscrowd=0), "bbox": [1, 2, 3, 4], "area": 12}
        ],
        "categories": [{"id": 9, "name": "tram"}, {"id": 4, "name": "bus"}],
    }
    (tmp_path / "own.json").write_text(json.dumps(content))
    yield "own_test_set", str(tmp_path / "own.json"), str(tmp_path / "images")
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("own_test_set", None)


def test_registered_set_loads(own_set):
    name, _, images = own_set
    register_coco_json([own_set])
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["bus", "tram"] and metadata.evaluator_type == "coco"
    (record,) = DatasetCatalog.get(name)
    assert record["file_name"] == f"{images}/a.jpg"
    assert record["annotations"][0]["category_id"] == 1
    assert metadata.thing_classes == ["bus", "tram"]


def test_same_entry_twice_is_fine_another_under_its_name_is_not(own_set, tmp_path):
    register_coco_json([list(own_set), list(own_set)])
    register_coco_json([own_set])
    with pytest.raises(ValueError, match="'own_test_set' in DATASETS.COCO_JSON is already regis"):
        register_coco_json([(own_set[0], own_set[1], str(tmp_path))])
    with pytest.raises(ValueError, match="'kitti_val' .* already registered"):
        register_coco_json([("kitti_val", *own_set[1:])])


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("", "is not a json file"),
        ("[1]", "it has no list 'images'"),
        ('{"images": [], "categories": []}', "it has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "there must be one"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "an id and a name"),
    ],
)
def test_other_files_are_refused(own_set, content, complaint):
    name, json_file, images = own_set
    with open(json_file, "w") as file:
        file.write(content)
    with pytest.raises(ValueError, match=re.escape(json_file) + ".*" + complaint):
        register_coco_json([own_set])
    assert name not in DatasetCatalog


def test_missing_paths_are_named(own_set, tmp_path):
    name, json_file, _ = own_set
    with pytest.raises(FileNotFoundError, match="No image directory .*nowhere.*DETECTRON2"):
        register_coco_json([(name, json_file, str(tmp_path / "nowhere"))])
    with pytest.raises(FileNotFoundError, match="No COCO annotation file .*no_such.json"):
        register_coco_json([(name, "no_such.json", str(tmp_path))])


@pytest.mark.parametrize("entry", ["abc", ["name", "file.json"], ["name", "file.json", 3], 5])
def test_malformed_entry_is_shown(entry):
    with pytest.raises(ValueError, match=r"expected \[name, json_path, image_dir\]"):
        register_coco_json([entry])
