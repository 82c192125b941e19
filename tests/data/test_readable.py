"""An image that cannot be read is named, in training and in evaluation."""

import shutil
from pathlib import Path

import pytest

from aid_d2.data import register_coco_json
from aid_d2.engine import Trainer


@pytest.fixture
def cfg(small_cfg, rectangles, tmp_path):
    """Of a data set whose last image ends too early, which its header does not tell."""
    images = shutil.copytree(rectangles[2], tmp_path / "images")
    broken = sorted(images.glob("*.png"))[-1]
    broken.write_bytes(broken.read_bytes()[:-30])
    name = f"broken_{tmp_path.name}"
    register_coco_json([[name, rectangles[1], str(images)]])
    changes = {"DATASETS.TRAIN": (name,), "DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 2}
    return small_cfg("RetinaNet", changes), name, broken


def test_training(cfg):
    cfg, _, broken = cfg
    with pytest.raises(ValueError, match=f"{Path(broken).name} .*cannot be read.*doctor --data"):
        for step, _ in enumerate(Trainer.build_train_loader(cfg)):
            assert step < 1000


def test_evaluation(cfg):
    cfg, name, broken = cfg
    with pytest.raises(ValueError, match=f"{Path(broken).name} .*cannot be read"):
        list(Trainer.build_test_loader(cfg, name))
