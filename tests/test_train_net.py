"""The command line, from a teacher to the evaluated student."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from aid_d2.engine import main
from detectron2.engine import default_argument_parser

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "kitti"
FAMILIES = ("retinanet", "faster_rcnn")
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 7,
}


@pytest.fixture(scope="module")
def data(rectangles):
    """What DATASETS.COCO_JSON takes."""
    return rectangles


def command(config, output, data, *flags, **overrides):
    options = {
        **SMALL,
        "DATASETS.COCO_JSON": [data],
        "DATASETS.TRAIN": (data[0],),
        "DATASETS.TEST": (data[0],),
        "OUTPUT_DIR": str(output),
        **overrides,
    }
    pairs = [str(x) for pair in options.items() for x in pair]
    return ["--config-file", str(CONFIGS / config), *flags, *pairs]


def run(*args, **overrides):
    return main(default_argument_parser().parse_args(command(*args, **overrides)))


def teacher_keys(directory):
    return {
        "DISTILL.TEACHER.CONFIG_FILE": str(directory / "config.yaml"),
        "DISTILL.TEACHER.WEIGHTS": str(directory / "model_final.pth"),
    }


def detections(output):
    return json.loads((output / "inference" / "coco_instances_results.json").read_text())


@pytest.fixture(scope="module")
def teachers(data, tmp_path_factory):
    """A directory with a trained teacher of each detector, by the KITTI configs."""
    root = tmp_path_factory.mktemp("teachers")
    for detector in FAMILIES:
        run(f"{detector}_R_101.yaml", root / detector, data, SEED=1)
    return root


@pytest.fixture(scope="module", params=FAMILIES)
def student(request, data, teachers, tmp_path_factory):
    """A student distilled with AID: its detector and directory."""
    output = tmp_path_factory.mktemp("student")
    run(f"{request.param}_R_50_aid.yaml", output, data, **teacher_keys(teachers / request.param))
    return request.param, output


def test_evaluation_needs_no_teacher_and_equals_the_plain_student(student, data, tmp_path):
    detector, output = student
    weights = {"MODEL.WEIGHTS": str(output / "model_final.pth")}
    missing = {"DISTILL.TEACHER.CONFIG_FILE": "nowhere.yaml", "DISTILL.TEACHER.WEIGHTS": "none.pth"}
    distilled = run(
        f"{detector}_R_50_aid.yaml", tmp_path / "eval", data, "--eval-only", **weights, **missing
    )
    plain = run(f"{detector}_R_50.yaml", tmp_path / "plain", data, "--eval-only", **weights)
    assert len(detections(tmp_path / "eval")) > 0
    assert detections(tmp_path / "eval") == detections(tmp_path / "plain")
    assert str(distilled) == str(plain)  # NaN where a metric has no objects
    (line,) = (tmp_path / "eval" / "inference" / "metrics.json").read_text().splitlines()
    assert json.loads(line)["bbox/AP50"] == pytest.approx(distilled["bbox"]["AP50"], nan_ok=True)


def test_checkpoint_holds_student_and_adapters_only(student, teachers):
    detector, output = student
    keys, plain = (
        torch.load(directory / "model_final.pth", weights_only=False)["model"].keys()
        for directory in (output, teachers / detector)
    )
    assert {key for key in keys if not key.startswith("distiller.")} == set(plain)
    assert any(key.startswith("distiller.") for key in keys)


def test_cheap_training_gives_a_checkpoint_in_float32(data, teachers, tmp_path):
    """Of the plain student; near that of ordinary training after two steps."""
    cheap = {"SOLVER.BF16": True, "SOLVER.CHANNELS_LAST": True}
    saved = []
    for name, changes in (("exact", {}), ("cheap", cheap)):
        run("retinanet_R_50.yaml", tmp_path / name, data, **changes)
        file = tmp_path / name / "model_final.pth"
        saved.append(torch.load(file, weights_only=False)["model"])
    exact, cheap = saved
    assert exact.keys() == cheap.keys()
    assert all(x.dtype == exact[name].dtype for name, x in cheap.items())
    weight = "head.cls_score.weight"
    assert 0 < (exact[weight] - cheap[weight]).norm() < 0.01 * exact[weight].norm()


def test_resume_goes_on_after_a_kill(data, teachers, tmp_path):
    arguments = command(
        "retinanet_R_50_aid.yaml",
        tmp_path,
        data,
        "--resume",
        **teacher_keys(teachers / "retinanet"),
        **{"SOLVER.CHECKPOINT_PERIOD": 3, "SOLVER.MAX_ITER": 9, "TEST.EVAL_PERIOD": 100},
    )
    call = [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), *arguments]
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "last_checkpoint").exists():
        assert process.poll() is None, "training ended before its first checkpoint"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = (tmp_path / "last_checkpoint").read_text()
    saved = torch.load(tmp_path / reached, weights_only=False)
    (tmp_path / "log.txt").unlink()

    main(default_argument_parser().parse_args(arguments))
    log = (tmp_path / "log.txt").read_text()
    assert f"Starting training from iteration {saved['iteration'] + 1}" in log
    final = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert final["iteration"] == 8
    assert final["model"].keys() == saved["model"].keys()
    # Momentum is there for every trained parameter, adapters included.
    before, after = (x["trainer"]["_trainer"]["optimizer"]["state"] for x in (saved, final))
    assert before.keys() == after.keys() and len(before) > 0


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"DISTILL.TEACHER.WEIGHTS": "gone.pth"}, "DISTILL.TEACHER.WEIGHTS.*gone.pth"),
        ({"DISTILL.TEACHER.CONFIG_FILE": "gone.yaml"}, "DISTILL.TEACHER.CONFIG_FILE.*gone.yaml"),
        ({"MODEL.RETINANET.NUM_CLASSES": 5, "DISTILL.AID.ENABLED": False}, "NUM_CLASSES"),
        ({"MODEL.RETINANET.NUM_CLASSES": 5}, "teacher has 3 classes and the student 5"),
        ({"DISTILL.METHODS": ("Nonsense",)}, "DISTILL.METHODS.*Nonsense"),
        ({"INPUT.FORMAT": "L"}, "INPUT.FORMAT"),
    ],
)
def test_bad_input_is_named_before_training(data, teachers, tmp_path, overrides, message):
    overrides = {**teacher_keys(teachers / "retinanet"), **overrides}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("retinanet_R_50_aid.yaml", tmp_path, data, **overrides)
    assert not list(tmp_path.glob("*.pth"))


def test_an_unknown_test_set_is_named_before_training(data, teachers, tmp_path):
    overrides = {**teacher_keys(teachers / "retinanet"), "DATASETS.TEST": ("nowhere_val",)}
    with pytest.raises(KeyError, match="nowhere_val.*not registered"):
        run("retinanet_R_50_aid.yaml", tmp_path, data, **overrides)
    assert not list(tmp_path.glob("*.pth"))


def test_a_test_set_of_other_classes_is_named_before_training(data, teachers, tmp_path):
    labels = json.loads(Path(data[1]).read_text())
    labels["categories"].append({"id": 9, "name": "tram"})
    (tmp_path / "other.json").write_text(json.dumps(labels))
    overrides = {
        **teacher_keys(teachers / "retinanet"),
        "DATASETS.COCO_JSON": [data, ["other_val", str(tmp_path / "other.json"), data[2]]],
        "DATASETS.TEST": ("other_val",),
    }
    with pytest.raises(ValueError, match="'other_val' has 4 classes"):
        run("retinanet_R_50_aid.yaml", tmp_path, data, **overrides)
    assert not list(tmp_path.glob("*.pth"))
