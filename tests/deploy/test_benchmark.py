"""`aid-d2 benchmark`: its figures, its order, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from aid_d2.cli import main
from aid_d2.deploy.benchmark import Candidate, report, time_all


@pytest.fixture
def candidate(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"0" * 2**20)

    def build(name, detect=len):
        sizes = {"parameters": 12_340_000, "macs": 5_670_000_000}
        return Candidate(name, "PyTorch", file, ["car"], **sizes, resize=lambda x: x, detect=detect)

    return build


def test_the_table_by_hand(candidate):
    slow, fast = candidate("slow"), candidate("fast")
    slow.seconds = [(0.001, 0.010), (0.002, 0.040), (0.003, 0.020)]
    fast.seconds = [(0.002, 0.004), (0.002, 0.005), (0.002, 0.006)]
    slow_row, fast_row = report([slow, fast])
    assert slow_row["file (MiB)"] == 1.0
    assert (slow_row["parameters (M)"], slow_row["MACs (G)"]) == (12.34, 5.67)
    assert (slow_row["resize (ms)"], slow_row["detect (ms)"]) == (2.0, 20.0)
    assert (slow_row["least"], slow_row["most"]) == (10.0, 40.0)
    assert slow_row["images / s"] == 45.5  # 1000 / 22
    assert (slow_row["faster"], fast_row["faster"]) == ("1.0x", "4.0x")


def test_all_take_turns(candidate):
    """The first round is left out."""
    order = []
    both = [
        candidate("a", lambda x: order.append("a")),
        candidate("b", lambda x: order.append("b")),
    ]
    time_all(both, [np.zeros((4, 4, 3), np.uint8)], repeats=3)
    assert order == ["a", "b"] * 4
    assert [len(x.seconds) for x in both] == [3, 3]


def test_a_detector_of_torch(small_cfg, build_seeded, save_teacher, rectangles, tmp_path, capsys):
    cfg = small_cfg("RetinaNet", {"INPUT.MIN_SIZE_TEST": 64})
    files = save_teacher(cfg, build_seeded(cfg, 3))
    spec = "one=" + ":".join(files[f"DISTILL.TEACHER.{x}"] for x in ("CONFIG_FILE", "WEIGHTS"))
    options = ["--images", rectangles[2], "--repeats", "2", "--threads", "1"]
    assert main(["benchmark", "--torch", spec, *options, "--output", str(tmp_path / "out")]) == 0
    (row,) = json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"]
    assert row["detector"] == "one" and row["detect (ms)"] > 0
    assert "| one " in capsys.readouterr().out
    assert "| one " in (tmp_path / "out" / "benchmark.md").read_text()


def test_classes_are_compared_before_anything_is_timed(
    small_cfg, build_seeded, save_teacher, rectangles, tmp_path, monkeypatch, capsys
):
    data = {"DATASETS.COCO_JSON": [list(rectangles)], "DATASETS.TEST": ("rectangles",)}
    cfg = small_cfg("RetinaNet", {"INPUT.MIN_SIZE_TEST": 64, **data})
    files = save_teacher(cfg, build_seeded(cfg, 3))
    config, weights = (files[f"DISTILL.TEACHER.{x}"] for x in ("CONFIG_FILE", "WEIGHTS"))
    torch.save({**torch.load(weights), "class_names": ["g", "r", "b"]}, tmp_path / "named.pth")
    monkeypatch.setattr("aid_d2.commands.benchmark.time_all", None)
    options = ["--images", rectangles[2], "--evaluate", config]
    assert main(["benchmark", "--torch", f"one={config}:{tmp_path / 'named.pth'}", *options]) == 2
    assert "in another order" in capsys.readouterr().err


@pytest.mark.parametrize(
    ["options", "message"],
    [
        ([], "nothing to time"),
        (["--torch", "config.yaml:w.pth"], "NAME="),
        (["--torch", "one=config.yaml"], "NAME=CONFIG:WEIGHTS"),
        (["--onnx", "one=gone.onnx"], "gone.onnx"),
        (["--onnx", "one=gone.onnx", "--repeats", "0"], "--repeats"),
    ],
)
def test_bad_input(rectangles, capsys, options, message):
    assert main(["benchmark", "--images", str(Path(rectangles[2])), *options]) == 2
    assert message in capsys.readouterr().err
