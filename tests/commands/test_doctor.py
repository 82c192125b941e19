import json

import pytest
import torch
from PIL import Image

from aid_d2.cli import main
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def run(capsys):
    """Returns run(*arguments) -> (exit code, what is printed)."""

    def call(*arguments):
        return main(["doctor", *arguments]), capsys.readouterr().out

    return call


@pytest.fixture
def config(tmp_path):
    """A config with a data set of 40 images, more than are looked at when it is registered."""
    images = []
    for i in range(40):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{i}.jpg")
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "width": 20, "height": 10})
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
    coco = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "own.json").write_text(json.dumps(coco))
    entry = ["doctor_set", str(tmp_path / "own.json"), str(tmp_path)]
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"DATASETS": {"COCO_JSON": [entry], "TRAIN": [], "TEST": []}}))
    yield path
    if "doctor_set" in DatasetCatalog:
        DatasetCatalog.remove("doctor_set")
        MetadataCatalog.pop("doctor_set")


def test_versions_are_printed(run):
    code, output = run()
    assert code == 0 and output.endswith("Nothing is wrong.\n")
    assert torch.__version__ in output
    for name in ("python", "torchvision", "detectron2", "CUDA", "device"):
        assert f"\n{name} " in output


def test_sound_data_of_a_config(run, config):
    code, output = run("--data", str(config))
    assert code == 0 and "doctor_set: 40 images, 1 boxes: car 1\n" in output


def test_every_broken_image_is_named(run, config):
    broken = [config.parent / f"{i}.jpg" for i in range(10, 16)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:400])
    code, output = run("--data", str(config))
    assert code == 1 and output.endswith("Something is wrong.\n")
    assert "doctor_set: images that cannot be read: 6" in output
    assert all(f"  {path}\n" in output for path in broken)


def test_a_faulty_file_and_an_unknown_name_are_told(run, config):
    (config.parent / "own.json").write_text("{")
    code, output = run("--data", str(config))
    assert code == 1 and "own.json is not a json file" in output
    code, output = run("--data", "kitti_trian")
    assert code == 1 and "Did you mean 'kitti_train'?" in output
