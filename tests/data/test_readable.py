"""An image that cannot be read is named, in training and in evaluation."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aid_d2.data import register_coco_json
from aid_d2.data.readable import NamingMapper, read_or_skip
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


def test_other_errors_are_not_blamed_on_16_bits(tmp_path):
    """Which is a fault, but none that keeps an image from being read."""
    file = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(file)

    def fail(record):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        read_or_skip(fail, {"file_name": str(file)})
    with pytest.raises(RuntimeError, match="a bug"):
        NamingMapper(fail)({"file_name": str(file)})
