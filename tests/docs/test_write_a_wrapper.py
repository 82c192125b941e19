"""The page "Write a detector wrapper": its code, run as it says."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.pages import AID_D2, environment, small_training

from aid_d2.aid import level_loss
from aid_d2.modeling.wrappers import wrap
from aid_d2.structures import Objects
from detectron2.utils.events import EventStorage

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "write_a_wrapper.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    files = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in zip(("spots.py", "spots_wrapper.py"), files, strict=True):
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def spots(folder):
    sys.path.insert(0, str(folder))
    importlib.import_module("spots_wrapper")
    yield importlib.import_module("spots")
    sys.path.remove(str(folder))


def test_the_wrapper_has_the_detectors_loss(spots, small_cfg, build_seeded, make_batch):
    model = build_seeded(small_cfg("RetinaNet", {"MODEL.META_ARCHITECTURE": "Spots"}), 0)
    batch = make_batch((3, 0, 2))
    with EventStorage():
        own = sum(model.train()(batch).values())
    wrapper = wrap(model.eval())
    outputs = wrapper.forward_features(batch, "BGR", with_head=True)
    losses = wrapper.judge(outputs, Objects.from_inputs(batch, torch.device("cpu")))
    torch.testing.assert_close(level_loss(losses).sum(), own.detach(), rtol=1e-4, atol=1e-5)


def test_the_page_trains(folder, spots, small_cfg, build_seeded, save_teacher, rectangles):
    plain = {"MODEL.META_ARCHITECTURE": "Spots"}
    cfg = small_cfg("RetinaNet", plain)
    changes = {
        **small_training(["spots_rectangles", *rectangles[1:]]),
        **save_teacher(cfg, build_seeded(cfg, 1)),
        "MODEL.META_ARCHITECTURE": "DistilledDetector",
        "DISTILL.STUDENT": "Spots",
        "PLUGINS": ("spots_wrapper",),
        "DISTILL.METHODS": ("PKD", "ADL"),
    }
    (folder / "spots_aid.yaml").write_text(small_cfg("RetinaNet", changes).dump())
    (command,) = re.findall(r"```bash\naid-d2 (.*?)\n```", PAGE.read_text())
    subprocess.run(
        [*AID_D2, *command.split()],
        cwd=folder,
        env=environment(),
        check=True,
        capture_output=True,
    )
    lines = (folder / "output/spots_aid/metrics.json").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["loss_PKD_feature"] > 0 and last["loss_ADL_cls"] > 0
