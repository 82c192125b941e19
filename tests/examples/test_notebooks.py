"""The notebooks under examples, small, cell after cell."""

import json
from pathlib import Path

import matplotlib
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
matplotlib.use("Agg")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(name, **replaced)`: a notebook in a folder `examples` of its own; its variables."""
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "quickstart").symlink_to(EXAMPLES / "quickstart")
    monkeypatch.chdir(folder)

    def call(name, replaced=()):
        notebook = json.loads((EXAMPLES / name).read_text())
        cells = ["".join(x["source"]) for x in notebook["cells"] if x["cell_type"] == "code"]
        for old, new in replaced:
            assert sum(old in cell for cell in cells) == 1, old
            cells = [cell.replace(old, new) for cell in cells]
        variables = {}
        for cell in cells:
            exec(compile(cell, name, "exec"), variables)
        return variables

    return call


@pytest.fixture
def quickstart(tmp_path, small_cfg, build_seeded, rectangles):
    """What a quickstart leaves in the folder above, untrained, on other images."""
    data = {
        "DATASETS.COCO_JSON": [["notebook_rectangles", *rectangles[1:]]],
        "DATASETS.TRAIN": ("notebook_rectangles",),
        "DATASETS.TEST": ("notebook_rectangles",),
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.GFL.SCORE_THRESH_TEST": 0.0,
    }
    for seed, name in enumerate(("teacher", "student_distilled")):
        folder = tmp_path / "output/quickstart" / name
        folder.mkdir(parents=True)
        cfg = small_cfg("GFL", data)
        (folder / "config.yaml").write_text(cfg.dump())
        torch.save({"model": build_seeded(cfg, seed).state_dict()}, folder / "model_final.pth")


def test_own_data(run, tmp_path):
    variables = run("own_data.ipynb", [("STEPS = 150", "STEPS = 2"), ("images=100", "images=8")])
    losses = (tmp_path / "examples/own_data/student/metrics.json").read_text().splitlines()[0]
    assert json.loads(losses)["loss_CrossKD_cls"] > 0
    assert len(list((variables["root"] / "seen").glob("*"))) == 4 + 1


def test_aid_weights(run, quickstart):
    variables = run("aid_weights.ipynb")
    assert list(variables["maps"]) == [8, 16, 32, 64, 128]


def test_export(run, quickstart, rectangles):
    replaced = [("../datasets/synthetic_road/training/image_2", rectangles[2])]
    replaced += [("score=0.3", "score=0.0")]
    variables = run("export.ipynb", replaced)
    assert len(variables["found"]["boxes"]) > 0
