import copy
import json

import pytest
from pycocotools.coco import COCO
from samples import IDS_AND_NAMES, REAL_DATA, coco_of

from aid_d2.data.coco_traffic import coco_traffic_classes, filter_coco_traffic


def test_selection_by_hand():
    coco = coco_of(
        [(3, 0), (1, 0), (15, 0), (17, 0)],  # a car, with a person, a bench and a cat
        [(1, 0), (14, 0), (18, 0), (5, 0)],  # no selecting class
        [(2, 1), (1, 1)],  # a crowd of bicycles selects, too
        [],
    )
    before = copy.deepcopy(coco)
    kept = filter_coco_traffic(coco)
    assert coco == before
    assert [image["id"] for image in kept["images"]] == [1, 3]
    found = [(a["image_id"], a["category_id"], a["iscrowd"]) for a in kept["annotations"]]
    assert found == [(1, 3, 0), (1, 1, 0), (1, 17, 0), (3, 2, 1), (3, 1, 1)]
    assert all(a["area"] == 7.5 and a["bbox"] == [1, 2, 3, 4] for a in kept["annotations"])
    assert not any("segmentation" in a for a in kept["annotations"])
    assert [c["id"] for c in kept["categories"]] == [1, 2, 3, 4, 6, 7, 8, 10, 11, 13, 14, 17, 18]


@pytest.mark.parametrize("category, name", IDS_AND_NAMES)
def test_which_classes_select_an_image(category, name):
    selecting = {"bicycle", "car", "motorcycle", "bus", "train", "truck"}
    selecting |= {"traffic light", "fire hydrant", "stop sign"}
    kept = filter_coco_traffic(coco_of([(category, 0)], [(3, 0)]))
    assert (len(kept["images"]) == 2) == (name in selecting)


def test_eleven_classes_drop_cat_and_dog():
    kept = filter_coco_traffic(coco_of([(3, 0), (17, 0), (18, 0), (14, 0)]), 11)
    assert [a["category_id"] for a in kept["annotations"]] == [3, 14]
    assert list(coco_traffic_classes(11).values())[-1] == "parking meter"
    assert len(kept["categories"]) == 11


def test_what_is_wrong_is_said():
    renamed = coco_of([(3, 0)])
    renamed["categories"][2]["name"] = "auto"
    with pytest.raises(ValueError, match="category 3 is 'auto', expected 'car'"):
        filter_coco_traffic(renamed)
    with pytest.raises(ValueError, match="no 'annotations'"):
        filter_coco_traffic({**coco_of([(3, 0)]), "annotations": []})
    with pytest.raises(ValueError, match="no 'images'"):
        filter_coco_traffic([])
    with pytest.raises(ValueError, match="13 or 11 classes, not 12"):
        coco_traffic_classes(12)


@pytest.mark.skipif(
    not (REAL_DATA / "coco/annotations/instances_val2017.json").is_file(),
    reason="needs COCO 2017's annotations in $DETECTRON2_DATASETS/coco",
)
def test_genuine_annotations_against_pycocotools():
    file = REAL_DATA / "coco/annotations/instances_val2017.json"
    kept = filter_coco_traffic(json.loads(file.read_text()))
    coco = COCO(str(file))
    selecting = ["bicycle", "car", "motorcycle", "bus", "train", "truck"]
    selecting += ["traffic light", "fire hydrant", "stop sign"]
    images = set().union(*(coco.getImgIds(catIds=[c]) for c in coco.getCatIds(catNms=selecting)))
    classes = coco.getCatIds(catNms=list(coco_traffic_classes().values()))
    expected = coco.getAnnIds(imgIds=sorted(images), catIds=classes)
    assert {image["id"] for image in kept["images"]} == images
    assert {a["id"] for a in kept["annotations"]} == set(expected)
