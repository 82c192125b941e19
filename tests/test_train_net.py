"""The command line, from a teacher to the evaluated student."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import command

from aid_d2 import cli
from aid_d2.engine import Trainer, argument_parser, main, setup
from aid_d2.modeling.precision import has_bfloat16
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import RetinaNet

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("retinanet", "faster_rcnn")


@pytest.fixture(scope="module")
def data(rectangles):
    """What DATASETS.COCO_JSON takes."""
    return rectangles


def run(*args, **overrides):
    return main(argument_parser().parse_args(command(*args, **overrides)))


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
    # Beside a training an evaluation leaves its files alone.
    kept = {x: (output / x).read_bytes() for x in ("config.yaml", "metrics.json")}
    other = {**weights, "INPUT.MIN_SIZE_TEST": 32}
    run(f"{detector}_R_50.yaml", output, data, "--eval-only", **other)
    assert kept == {x: (output / x).read_bytes() for x in kept}
    assert "MIN_SIZE_TEST: 32" in (output / "inference" / "config.yaml").read_text()
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
    log = (tmp_path / "cheap/log.txt").read_text()
    assert ("emulates bfloat16" in log) == (not has_bfloat16(torch.device("cpu")))
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

    main(argument_parser().parse_args(arguments))
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
    with pytest.raises(ValueError, match="no data set 'nowhere_val'"):
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


def test_a_used_output_dir_is_left_alone(data, tmp_path):
    """Without --resume or --overwrite."""
    content = {"model_0000002.pth": b"weights", "config.yaml": b"VERSION: 2", "log.txt": b"log"}
    for name, text in content.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(FileExistsError, match="model_0000002.pth.*--resume.*--overwrite"):
        run("retinanet_R_50.yaml", tmp_path, data)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == content


def test_overwrite_trains_anew(data, tmp_path):
    (tmp_path / "model_final.pth").write_bytes(b"weights")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    run("retinanet_R_50.yaml", tmp_path, data, "--overwrite")
    assert torch.load(tmp_path / "model_final.pth", weights_only=False)["iteration"] == 1


def test_a_run_that_was_overwritten_is_not_resumed(data, tmp_path, monkeypatch):
    """Though its files are still there when the new one ends before its first checkpoint."""
    run("retinanet_R_50.yaml", tmp_path, data)
    monkeypatch.setattr(Trainer, "train", lambda trainer: None)
    run("retinanet_R_50.yaml", tmp_path, data, "--overwrite")
    assert (tmp_path / "model_final.pth").exists()
    monkeypatch.undo()
    run("retinanet_R_50.yaml", tmp_path, data, "--resume")
    assert (tmp_path / "log.txt").read_text().count("Starting training from iteration 0") == 2


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_evaluation_without_weights_is_refused(data, tmp_path, flags):
    with pytest.raises(ValueError, match="no weights.*MODEL.WEIGHTS.*--resume"):
        run("retinanet_R_50.yaml", tmp_path, data, "--eval-only", *flags)


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_weights_of_another_detector_are_refused(data, tmp_path, flags):
    path = tmp_path / "other.pth"
    torch.save({"model": {f"other.{i}": torch.zeros(1) for i in range(9)}}, path)
    overrides = {"MODEL.WEIGHTS": str(path)}
    with pytest.raises(ValueError, match="other.pth.*9 of its 9 tensors.*other.0"):
        run("retinanet_R_50.yaml", tmp_path / "run", data, *flags, **overrides)


def test_a_student_with_more_tensors_of_methods_than_of_its_own_is_evaluated(
    student, data, tmp_path
):
    detector, output = student
    saved = torch.load(output / "model_final.pth", weights_only=False)
    more = {f"distiller.X.{i}": torch.zeros(1) for i in range(2 * len(saved["model"]))}
    torch.save({**saved, "model": {**saved["model"], **more}}, tmp_path / "more.pth")
    weights = {"MODEL.WEIGHTS": str(tmp_path / "more.pth")}
    run(f"{detector}_R_50.yaml", tmp_path / "out", data, "--eval-only", **weights)
    assert len(detections(tmp_path / "out")) > 0


@pytest.mark.parametrize(
    "number, code, group",
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGTERM, 143, True)],
)
def test_a_signal_leaves_a_checkpoint_to_resume_from(data, tmp_path, number, code, group):
    """Also one that ends the workers too that load data, as a scheduler sends it."""
    keys = {
        "SOLVER.CHECKPOINT_PERIOD": 10**6,
        "SOLVER.MAX_ITER": 10**5,
        "TEST.EVAL_PERIOD": 10**6,
        "DATALOADER.NUM_WORKERS": 2 if group else 0,
    }
    arguments = command("retinanet_R_50.yaml", tmp_path, data, **keys)
    call = [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), *arguments]
    process = subprocess.Popen(
        call,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    metrics = tmp_path / "metrics.json"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, "training ended before its first steps"
        time.sleep(0.05)
    (os.killpg if group else os.kill)(process.pid, number)
    assert process.wait() == code
    saved = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=False)
    assert saved["iteration"] >= 19 and "optimizer" in saved["trainer"]["_trainer"]


def test_too_little_memory_leaves_a_checkpoint(data, tmp_path, monkeypatch):
    """From which a smaller batch, the remedy that the error names, goes on."""
    keys = {"SOLVER.MAX_ITER": 5, "SOLVER.CHECKPOINT_PERIOD": 100, "TEST.EVAL_PERIOD": 100}
    forward, enough = RetinaNet.forward, iter(range(3))

    def on_a_small_device(self, batch):
        if self.training and len(batch) == 2 and next(enough, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return forward(self, batch)

    monkeypatch.setattr(RetinaNet, "forward", on_a_small_device)
    with pytest.raises(cli.USER_ERRORS, match="(?s)1 GiB.*--resume.*SOLVER.IMS_PER_BATCH"):
        run("retinanet_R_50.yaml", tmp_path, data, **keys)
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=False)
    assert saved["iteration"] == saved["trainer"]["iteration"] == 2
    assert "optimizer" in saved["trainer"]["_trainer"]
    run("retinanet_R_50.yaml", tmp_path, data, "--resume", **keys, **{"SOLVER.IMS_PER_BATCH": 1})
    assert "Starting training from iteration 3" in (tmp_path / "log.txt").read_text()
    assert torch.load(tmp_path / "model_final.pth", weights_only=False)["iteration"] == 4


def test_a_resumption_has_weights_and_momentum_of_the_checkpoint(data, tmp_path):
    """Also where float16 begins with it."""
    run("retinanet_R_50.yaml", tmp_path, data)
    keys = {"SOLVER.AMP.ENABLED": True, "SOLVER.MAX_ITER": 3}
    arguments = command("retinanet_R_50.yaml", tmp_path, data, "--resume", **keys)
    trainer = Trainer(setup(argument_parser().parse_args(arguments)))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2 and hasattr(trainer._trainer, "grad_scaler")
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved["model"][name])
    before = saved["trainer"]["_trainer"]["optimizer"]["state"]
    after = trainer.optimizer.state_dict()["state"]
    assert before.keys() == after.keys() and len(before) > 0
    for index, state in before.items():
        assert torch.equal(state["momentum_buffer"], after[index]["momentum_buffer"])


def test_without_a_teacher_none_is_evaluated(data, tmp_path):
    with pytest.raises(ValueError, match="--eval-teacher: nothing is distilled"):
        run("retinanet_R_50.yaml", tmp_path, data, "--eval-teacher")


def test_float16_needs_a_gpu(data, tmp_path):
    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED .* MODEL.DEVICE is cpu"):
        run("retinanet_R_50.yaml", tmp_path, data, **{"SOLVER.AMP.ENABLED": True})


def test_a_training_that_diverges_names_the_remedy(data, tmp_path):
    message = "(?s)infinite or NaN at iteration.*loss_cls.*SOLVER.CLIP_GRADIENTS.ENABLED True"
    with pytest.raises(cli.USER_ERRORS, match=message):
        run("retinanet_R_50.yaml", tmp_path, data, **{"SOLVER.BASE_LR": 1e30})


def test_classes_are_compared_by_name(student, data, tmp_path):
    """The checkpoint knows its classes: swapped ids in a test set are no silent fall of AP."""
    detector, output = student
    labels = json.loads(Path(data[1]).read_text())
    swapped = {1: 2, 2: 1, 3: 3}
    for category in labels["categories"]:
        category["id"] = swapped[category["id"]]
    (tmp_path / "swapped.json").write_text(json.dumps(labels))
    entry = [f"swapped_{detector}", str(tmp_path / "swapped.json"), data[2]]
    overrides = {
        "MODEL.WEIGHTS": str(output / "model_final.pth"),
        "DATASETS.COCO_JSON": [data, entry],
        "DATASETS.TEST": (entry[0],),
    }
    message = "r, g, b; .* are g, r, b, in another order"
    with pytest.raises(ValueError, match=f"the checkpoint are {message}"):
        run(f"{detector}_R_50.yaml", tmp_path / "out", data, "--eval-only", **overrides)
    overrides["MODEL.WEIGHTS"] = ""
    with pytest.raises(ValueError, match=f"the data set .* are {message}"):
        run(f"{detector}_R_50.yaml", tmp_path / "out", data, **overrides)


def test_what_a_distilled_training_tells(data, teachers, tmp_path):
    """The share of distillation by hand, and the teacher's AP as its own evaluation gives it."""
    files = teacher_keys(teachers / "retinanet")
    few = {"SOLVER.MAX_ITER": 21, "TEST.EVAL_PERIOD": 100}
    run("retinanet_R_50_aid.yaml", tmp_path / "run", data, "--eval-teacher", **files, **few)
    log = (tmp_path / "run" / "log.txt").read_text()
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines[:2] for key, value in json.loads(line).items()}
    distilled = sum(v for k, v in metrics.items() if "AttentionGuided" in k or "NonLocal" in k)
    assert metrics["distill/share"] == pytest.approx(distilled / metrics["total_loss"], rel=0.2)
    weights = {"MODEL.WEIGHTS": files["DISTILL.TEACHER.WEIGHTS"]}
    alone = run("retinanet_R_101.yaml", tmp_path / "alone", data, "--eval-only", **weights)
    assert metrics["teacher/AP"] == pytest.approx(alone["bbox"]["AP"], nan_ok=True)
    assert "of the total loss" in log
    assert "strides 8, 16, 32, 64, 128" in log and "AttentionGuided, NonLocal, times 1" in log
    assert "Contents of args.config_file" not in log and log.count("full config:") == 1
    lines = (teachers / "retinanet" / "metrics.json").read_text().splitlines()
    assert f"model_final.pth, AP {json.loads(lines[-1])['bbox/AP']:.1f}" in log


def test_detectron2_alone_loads_the_students_config(student, data):
    """Detectron2's own keys, and the detector that was trained."""
    _, output = student
    cfg = get_cfg()
    cfg.merge_from_file(str(output / "student.yaml"))
    predictor = DefaultPredictor(cfg)
    trained = torch.load(output / "model_final.pth")["model"]
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, trained.get(name, value)), name
    assert "instances" in predictor(np.zeros((64, 96, 3), np.uint8))
