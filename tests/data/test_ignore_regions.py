import copy

import numpy as np
import pytest
from PIL import Image

from aid_d2.data import IgnoreRegionMapper
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode


@pytest.fixture
def record(tmp_path):
    """An object of class 1, and one ignore region given for each of three classes."""
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 50)).save(path)
    region = {"bbox": [60, 10, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1}
    annotations = [{**region, "category_id": c} for c in range(3)]
    annotations.insert(
        1, {"bbox": [10, 5, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0, "category_id": 1}
    )
    size = {"height": 50, "width": 100}
    return {"file_name": str(path), "image_id": 1, **size, "annotations": annotations}


def mapper(cls, *augmentations, is_train=True):
    return cls(is_train=is_train, augmentations=list(augmentations), image_format="RGB")


def test_regions_arrive_once_as_class_minus_one(record):
    before = copy.deepcopy(record)
    instances = mapper(IgnoreRegionMapper)(record)["instances"]
    assert instances.gt_classes.tolist() == [1, -1]
    assert instances.gt_boxes.tensor.tolist() == [[10, 5, 30, 35], [60, 10, 80, 40]]
    assert record == before
    assert mapper(DatasetMapper)(record)["instances"].gt_classes.tolist() == [1]


def test_regions_follow_the_augmentation(record):
    flip, enlarge = T.HFlipTransform(100), T.ResizeTransform(50, 100, 100, 200)
    instances = mapper(IgnoreRegionMapper, flip, enlarge)(record)["instances"]
    expected = np.array([[70, 5, 90, 35], [20, 10, 40, 40]]) * 2
    np.testing.assert_allclose(instances.gt_boxes.tensor.numpy(), expected)


def test_region_outside_a_crop_is_gone(record):
    instances = mapper(IgnoreRegionMapper, T.CropTransform(0, 0, 50, 50))(record)["instances"]
    assert instances.gt_classes.tolist() == [1]


def test_same_as_detectron2_without_regions(record):
    record["annotations"] = [a for a in record["annotations"] if not a["iscrowd"]]
    ours, theirs = (mapper(cls)(record)["instances"] for cls in (IgnoreRegionMapper, DatasetMapper))
    assert ours.gt_classes.tolist() == theirs.gt_classes.tolist() == [1]
    assert ours.gt_boxes.tensor.equal(theirs.gt_boxes.tensor)


def test_no_labels_when_not_training(record):
    mapped = mapper(IgnoreRegionMapper, is_train=False)(record)
    assert "instances" not in mapped and "annotations" not in mapped


def test_built_from_a_config(record):
    cfg = get_cfg()
    mapped = IgnoreRegionMapper(cfg, is_train=True)(record)
    assert mapped["instances"].gt_classes.tolist() == [1, -1]
    cfg.MODEL.MASK_ON = True
    with pytest.raises(ValueError, match="turn off MODEL.MASK_ON"):
        IgnoreRegionMapper(cfg, is_train=True)
