"""`aid-d2 gpu-check`: parts stand alone, what is done is kept, and what is wrong is told."""

import json

import pytest
import torch

from aid_d2.cli import main
from aid_d2.commands import gpu_check
from aid_d2.engine.gpu_check import Skip, all_parts, cost


def parts(**functions):
    return lambda: functions


def broken(setting):
    raise RuntimeError("no kernel\nand more")


def absent(setting):
    raise Skip("no such thing here")


def test_parts_stand_alone(tmp_path, monkeypatch, capsys):
    """A failed one is told and the others run; files are there after each."""

    def look(setting):
        return {"files": len(list(tmp_path.iterdir()))}

    functions = parts(**{"cost of a": lambda x: {"to_floor": 1.25}}, b=broken, c=absent, d=look)
    monkeypatch.setattr(gpu_check, "all_parts", functions)
    assert main(["gpu-check", "--device", "cpu", "--output", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [x["status"] for x in results.values()] == [
        *("ok", "failed: RuntimeError: no kernel\nand more"),
        *("skipped: no such thing here", "ok"),
    ]
    assert results["d"]["figures"] == {"files": 2}
    table = (tmp_path / "gpu_check.md").read_text()
    assert "1.250" in table and "no such thing here" in table and "and more" not in table


def test_parts_are_skipped_when_time_is_short(tmp_path):
    options = ["--device", "cpu", "--minutes", "0.1", "--output", str(tmp_path)]
    assert main(["gpu-check", *options]) == 0
    results = json.loads((tmp_path / "gpu_check.json").read_text())
    assert results.keys() == all_parts().keys()
    assert {x["status"] for x in results.values()} == {"skipped: time is short"}


def test_a_cost_is_measured(monkeypatch):
    """Of a small GFL: the ratios are those of the seconds."""
    setting = gpu_check.Setting("cpu", None, 100)
    figures = cost(setting, detector="gfl", keys=())
    floor = figures["student_s"] + figures["teacher_s"]
    assert figures["methods"] == "CrossKD"
    assert figures["to_floor"] == pytest.approx(figures["distilled_s"] / floor)


def test_float16_is_for_gpus():
    with pytest.raises(Skip, match="float16"):
        cost(gpu_check.Setting("cpu", None, 100), "gfl", ("SOLVER.AMP.ENABLED", True))


def test_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu-check", "--output", str(tmp_path)]) == 2
    assert "--device cpu" in capsys.readouterr().err
    options = ["--device", "cpu", "--data", str(tmp_path / "gone.json"), str(tmp_path)]
    assert main(["gpu-check", *options]) == 2
    assert "gone.json" in capsys.readouterr().err
