"""The page "First distillation": all its files and commands, from an empty folder, small."""

import json
import os
import re
import shlex
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest
from helpers.pages import first_distillation_files
from PIL import Image, ImageDraw

from aid_d2.cli import main
from aid_d2.config import load_config
from aid_d2.deploy.runtime import Detector

pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
pytest.importorskip("timm", reason="the extra [timm] is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "first_distillation.md"
CLASSES = ("car", "person", "truck")
TRAIN = "aid-d2 train "
# No download, two steps of small images, and detections although nothing was learned.
SMALL = (
    "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.STEPS '()' DATALOADER.NUM_WORKERS 0 "
    "MODEL.WEIGHTS '' MODEL.TIMM.PRETRAINED False MODEL.BACKBONE.FREEZE_AT 0 "
    "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 "
    "INPUT.MIN_SIZE_TRAIN '(64,)' INPUT.MIN_SIZE_TEST 64 MODEL.GFL.SCORE_THRESH_TEST 0.0"
)


@pytest.fixture
def folder(tmp_path):
    """An empty folder but for the pictures and labels that the page wants."""
    root = tmp_path / "datasets" / "my_data"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for i, name in enumerate(CLASSES):
        left, top = 10 + 4 * i, 6 * i
        image = Image.new("RGB", (96, 64), (90, 90, 90))
        ImageDraw.Draw(image).rectangle((left, top, left + 30, top + 20), (200, 40 * i, 20))
        image.save(root / "JPEGImages" / f"{name}.jpg")
        box = zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, left + 31, top + 21))
        tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in box)
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>96</width><height>64</height>"
            f"</size><object><name>{name}</name><bndbox>{tags}</bndbox></object></annotation>"
        )
    for split in ("train", "val"):
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(CLASSES))
    return tmp_path


def test_the_page_runs(folder, monkeypatch):
    page = PAGE.read_text()
    files = first_distillation_files()
    assert list(files) == ["data.yaml", "teacher.yaml", "student.yaml", "distilled.yaml"]
    for name, text in files.items():
        (folder / name).write_text(text)
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (small_teacher,) = set(blocks) - set(files.values())
    (folder / "small.yaml").write_text(small_teacher)
    assert load_config(str(folder / "small.yaml")).MODEL.TIMM.NAME == "tf_efficientnet_lite2"
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    script = "".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    assert script.count(TRAIN) == 3
    for command in script.splitlines():
        small = f" {SMALL}" if command.startswith(TRAIN) else ""
        program, *arguments = shlex.split(command + small)
        if program == "aid-d2":
            assert main(arguments) == 0, command
        else:
            assert program == "python"
            subprocess.run(
                [sys.executable, *(x for y in arguments for x in sorted(glob(y)))], check=True
            )
    losses = json.loads((folder / "output/student/metrics.json").read_text().splitlines()[0])
    assert losses["loss_CrossKD_cls"] > 0
    assert len(os.listdir(folder / "seen")) == len(CLASSES) + 1
    assert Detector("student.onnx").metadata["classes"] == list(CLASSES)
    assert list((folder / "timing").glob("*.json"))
