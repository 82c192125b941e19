"""benchmarks/compare.py: a small suite, killed once and taken up again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import compare
import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(tmp_path, small_cfg, rectangles):
    """A file of a teacher, a student and a distilled one, with three steps each."""
    data = {
        "DATASETS.COCO_JSON": [["compare_rectangles", *rectangles[1:]]],
        "DATASETS.TRAIN": ("compare_rectangles",),
        "DATASETS.TEST": ("compare_rectangles",),
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.STEPS": (),
        "DATALOADER.NUM_WORKERS": 0,
    }
    (tmp_path / "plain.yaml").write_text(small_cfg("RetinaNet", data).dump())
    distilled = {**data, "MODEL.META_ARCHITECTURE": "DistilledDetector"}
    distilled["DISTILL.STUDENT"] = "RetinaNet"
    (tmp_path / "distilled.yaml").write_text(small_cfg("RetinaNet", distilled).dump())
    plain, distilled = (str(tmp_path / f"{x}.yaml") for x in ("plain", "distilled"))
    content = {
        "seeds": [4],
        "opts": {"SOLVER.MAX_ITER": 3, "SOLVER.BASE_LR": 1e-6},
        "groups": {
            "boxes": {
                "teacher": {"config": plain, "opts": {"SOLVER.BASE_LR": 2e-6}},
                "baselines": ["student"],
                "rows": {"student": {"config": plain}, "aid": {"config": distilled}},
            }
        },
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path / "suite.yaml"


def folder_of(run, output):
    return output / "runs" / f"{Path(run['config']).stem}-seed{run['seed']}-{run['config_hash']}"


def results_of(output):
    return sorted((output / "runs").glob("*/result.json"))


def test_a_suite_that_is_killed_goes_on(suite, tmp_path, monkeypatch, capsys):
    output = tmp_path / "output"
    arguments = ["--suite", str(suite), "--output", str(output)]
    killed = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "compare.py"), *arguments]
    )
    deadline = time.monotonic() + 300
    while not results_of(output) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (first,) = results_of(output)
    written = first.stat().st_mtime_ns

    monkeypatch.setattr("sys.argv", ["compare.py", *arguments])
    compare.main()
    assert first.stat().st_mtime_ns == written
    runs = json.loads((output / "results.json").read_text())["runs"]
    commit = compare.code_version()
    assert [x["row"] for x in runs] == ["teacher", "student", "aid"]
    for run in runs:
        assert run["group"] == "boxes" and run["seed"] == (1 if run["row"] == "teacher" else 4)
        assert 0 < run["data_seconds_per_step"] < run["seconds_per_step"]
        assert run["peak_memory_mb"] > 100
        assert run["versions"]["aid_d2"] == commit
        assert {
            "AP",
            "AP50",
            "AP75",
            "AP-r",
            "AP-g",
            "AP-b",
            "config_hash",
            "versions",
        } <= run.keys()
        folder = folder_of(run, output)
        lines = (folder / "metrics.json").read_text().splitlines()
        assert json.loads(lines[-1])["bbox/AP50"] == pytest.approx(run["AP50"], nan_ok=True)
    log = next((output / "runs").glob("distilled-*")) / "metrics.json"
    assert "loss_PKD" in log.read_text()
    assert "| aid" in (output / "results.md").read_text()
    assert (output / "results.png").exists()

    # All is done: nothing is trained again.
    with monkeypatch.context() as patch:
        patch.setattr(compare.subprocess, "Popen", None)
        compare.main()
    assert "3 runs, 3 of them done" in capsys.readouterr().out

    # The teacher as a file is only evaluated, and a run that began from a checkpoint says so.
    (folder_of(runs[1], output) / "result.json").unlink()
    content = yaml.safe_load(suite.read_text())
    group = content["groups"]["boxes"]
    group["teacher"]["weights"] = str(folder_of(runs[0], output) / "model_final.pth")
    del group["rows"]["aid"]
    suite.write_text(yaml.safe_dump(content, sort_keys=False))
    compare.main()
    assert "2 runs, 0 of them done" in capsys.readouterr().out
    teacher, student = json.loads((output / "results.json").read_text())["runs"]
    assert teacher["AP50"] == pytest.approx(runs[0]["AP50"], nan_ok=True)
    assert not (folder_of(teacher, output) / "model_final.pth").exists()
    assert [x["resumed_at"] for x in (*runs, student)] == [[], [], [], [3]]


def test_a_run_that_fails_is_named(suite, tmp_path, monkeypatch, capsys):
    content = yaml.safe_load(suite.read_text())
    content["groups"]["boxes"]["teacher"]["opts"] = {"MODEL.WEIGHTS": "nowhere.pth"}
    suite.write_text(yaml.safe_dump(content, sort_keys=False))
    output = tmp_path / "output"
    monkeypatch.setattr("sys.argv", ["compare.py", "--suite", str(suite), "--output", str(output)])
    with pytest.raises(SystemExit, match="2 runs failed: see .*plain-seed1.*distilled-seed4"):
        compare.main()
    assert "FAILED: plain-seed1" in capsys.readouterr().out
    assert [x.parent.name.split("-")[0] for x in results_of(output)] == ["plain"]
