"""`aid-d2 quantize`: int8 convolutions, the same detector, and nothing kept that loses AP."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from aid_d2.cli import main
from aid_d2.commands import quantize
from aid_d2.config import load_config

onnx = pytest.importorskip("onnx", reason="the extra [export] is not installed")
Detector = pytest.importorskip("aid_d2.deploy.runtime").Detector


@pytest.fixture(scope="module")
def exported(small_cfg, build_seeded, save_teacher, rectangles, tmp_path_factory):
    """An exported detector of random weights, and the arguments that name its test set."""
    folder = tmp_path_factory.mktemp("exported")
    changes = {
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
        "INPUT.MIN_SIZE_TEST": 64,
        "DATASETS.COCO_JSON": [list(rectangles)],
        "DATASETS.TEST": ("rectangles",),
    }
    cfg = small_cfg("RetinaNet", changes)
    saved = save_teacher(cfg, build_seeded(cfg, 3))
    config, weights = (saved[f"DISTILL.TEACHER.{x}"] for x in ("CONFIG_FILE", "WEIGHTS"))
    named, output = str(folder / "named.pth"), str(folder / "detector.onnx")
    torch.save({**torch.load(weights), "class_names": ["r", "g", "b"]}, named)
    files = ["--config-file", config, "--weights", named]
    assert main(["export", *files, "--images", rectangles[2], "--output", output]) == 0
    return ["--onnx", output, "--images", rectangles[2], "--evaluate", config]


def test_convolutions_in_8_bits(exported, rectangles, tmp_path, capsys):
    """Its detections are near those of the float file."""
    output = tmp_path / "int8.onnx"
    assert main(["quantize", *exported, "--output", str(output)]) == 0
    assert "AP of" in capsys.readouterr().out
    nodes = onnx.load(output).graph
    types = {x.name: x.data_type for x in nodes.initializer}
    produced = {out: node for node in nodes.node for out in node.output}

    def is_int8(conv):
        source = produced.get(conv.input[1])
        return source is not None and types.get(source.input[0]) == onnx.TensorProto.INT8

    found = [is_int8(x) for x in nodes.node if x.op_type == "Conv"]
    assert len(found) > 20 and not found[0] and all(found[1:])
    image = cv2.imread(str(sorted(Path(rectangles[2]).glob("*.png"))[0]))
    ours, theirs = Detector(str(output)), Detector(exported[1])
    assert ours.metadata == theirs.metadata
    ours, theirs = ours(image), theirs(image)
    assert len(ours["scores"]) > 20
    best = min(len(ours["scores"]), len(theirs["scores"]), 20)
    assert np.abs(ours["scores"][:best] - theirs["scores"][:best]).max() < 0.05


def test_classes_are_compared_first(exported, rectangles, tmp_path, monkeypatch, capsys):
    labels = json.loads(Path(rectangles[1]).read_text())
    for category in labels["categories"]:
        category["name"] = {"r": "g", "g": "r", "b": "b"}[category["name"]]
    (tmp_path / "swapped.json").write_text(json.dumps(labels))
    entry = ["swapped_quantize", str(tmp_path / "swapped.json"), rectangles[2]]
    cfg = load_config(exported[-1])
    cfg.merge_from_list(["DATASETS.COCO_JSON", [entry], "DATASETS.TEST", (entry[0],)])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    monkeypatch.setattr(quantize, "quantize", None)
    arguments = [*exported[:-1], str(tmp_path / "config.yaml")]
    assert main(["quantize", *arguments, "--output", str(tmp_path / "int8.onnx")]) == 2
    assert "in another order" in capsys.readouterr().err


def test_what_loses_ap_is_not_kept(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quantize, "MOST_AP_LOST", -101.0)
    assert main(["quantize", *exported, "--output", str(tmp_path / "int8.onnx")]) == 2
    assert "nothing is kept" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ["option", "value", "message"],
    [
        ("--onnx", "gone.onnx", "there is no file gone.onnx"),
        ("--images", "nowhere", "nowhere"),
        ("--evaluate", "gone.yaml", "gone.yaml"),
        ("--output", __file__, "exists already"),
    ],
)
def test_bad_input(exported, tmp_path, capsys, option, value, message):
    arguments = [*exported, "--output", str(tmp_path / "int8.onnx")]
    arguments[arguments.index(option) + 1] = value
    assert main(["quantize", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
