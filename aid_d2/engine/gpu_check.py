"""The parts of `aid-d2 gpu-check`: what a GPU can break, and what a step costs on it.

A part is a function of the :class:`Setting`; it returns figures by name or raises :class:`Skip`.
"""

import gc
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision

import detectron2

from ..config import load_config, plain_student
from ..data.coco_file import read_coco_json
from .step_cost import Case, interleave, observer, stepper, with_random_teacher

DETECTORS = ("retinanet", "gfl", "faster_rcnn")
# Keys of each precision; float32 may use TF32, as users' trainings do.
PRECISIONS = {
    "float32": (),
    "bfloat16": ("SOLVER.BF16", True),
    "float16": ("SOLVER.AMP.ENABLED", True),
}
COMPILED = ("SOLVER.COMPILE", True, "DISTILL.TEACHER.COMPILE", True)
# Without a GPU: small networks and images, which show that the parts run.
SMALL = (
    "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 "
    "MODEL.FPN.OUT_CHANNELS 64 MODEL.ROI_BOX_HEAD.FC_DIM 64"
).split()


class Skip(Exception):
    """A part that does not apply, and why."""


@dataclass(frozen=True)
class Setting:
    """Where and on what the parts run.

    Attributes:
        device: `cuda` or `cpu`.
        data: (COCO json, folder of images) for the training, if there is one.
        seconds: that are left for a part.
    """

    device: str
    data: tuple[str, str] | None
    seconds: float

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


Part = Callable[[Setting], dict]


def all_parts() -> dict[str, Part]:
    """The parts by name, in the order in which they run."""
    costs = {
        f"cost of {detector} in {precision}": partial(cost, detector=detector, keys=keys)
        for precision, keys in PRECISIONS.items()
        for detector in DETECTORS
    }
    compiled = partial(cost, detector="retinanet", keys=(*PRECISIONS["bfloat16"], *COMPILED))
    return {
        "machine": machine,
        "tests": gpu_tests,
        **costs,
        "training": training,
        "cost of retinanet in bfloat16, compiled": compiled,
    }


def machine(setting: Setting) -> dict:
    """Versions and the device."""
    known = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "device": platform.processor() or platform.machine(),
    }
    if setting.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        known["device"] = properties.name
        known["capability"] = f"{properties.major}.{properties.minor}"
        known["memory_gib"] = round(properties.total_memory / 2**30, 1)
        known["cuda"] = torch.version.cuda
    return known


def gpu_tests(setting: Setting) -> dict:
    """The tests of `tests/gpu`, of a checkout."""
    if not Path("tests/gpu").is_dir():
        raise Skip("tests/gpu is not here: run it in a checkout")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    variables = {**os.environ, "AID_D2_TEST_DEVICE": setting.device}
    done = _call(command, setting.seconds, env=variables)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if done.returncode:
        raise RuntimeError("\n".join([*failed, *lines[-1:]]) or done.stderr[-2000:])
    return {"result": lines[-1]}


def _call(command: list[str], seconds: float, **options) -> subprocess.CompletedProcess:
    """Run a command, and end it after some seconds.

    Raises:
        TimeoutError: it was not done.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, **options)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"not done after {seconds:.0f} s") from error


def cost(setting: Setting, detector: str, keys: tuple) -> dict:
    """Medians of the student's step, the teacher's forward pass and the distilled step: R101 to R50
    at 800x1333, 8 images, by the default method with AID, in a step in which AID judges (one of
    four). With too little memory, fewer images.

    Returns:
        seconds, their ratios to student and floor (student + teacher), and to the student's peak
        memory.
    """
    if not setting.on_gpu and "SOLVER.AMP.ENABLED" in keys:
        raise Skip("float16 is for GPUs")
    images = 8 if setting.on_gpu else 2
    while True:
        try:
            return _cost(setting, detector, keys, images)
        except torch.cuda.OutOfMemoryError:
            if images == 1:
                raise
            images //= 2
        gc.collect()
        torch.cuda.empty_cache()


def _cost(setting: Setting, detector: str, keys: tuple, images: int) -> dict:
    size = (800, 1333) if setting.on_gpu else (128, 160)
    cfg = load_config(f"kitti/{detector}_R_50_aid.yaml", () if setting.on_gpu else SMALL)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = setting.device, ""
    cfg.DISTILL.METHODS, cfg.DISTILL.AID.PRESET = ["auto"], ""
    with tempfile.TemporaryDirectory() as folder:
        cfg = with_random_teacher(cfg, Path(folder))
        case = Case(cfg, *size, images, objects=8).changed(*keys)
        model, distilled = stepper(case)
        steps = {
            "student": stepper(case.student)[1],
            "teacher": observer(case, model),
            "distilled": distilled,
        }
    seconds = interleave(steps, 7 if setting.on_gpu else 1)
    result = {
        "images": images,
        "methods": " + ".join(model.distiller),
        "student_s": seconds["student"],
        "teacher_s": seconds["teacher"],
        "distilled_s": seconds["distilled"],
        "to_floor": seconds["distilled"] / (seconds["student"] + seconds["teacher"]),
        "to_student": seconds["distilled"] / seconds["student"],
    }
    if setting.on_gpu:
        del steps, distilled, model
        result["memory_to_student"] = _peak(case) / _peak(case.student)
    return result


def _peak(case: Case) -> float:
    """Most bytes that CUDA has had to give in two steps of a detector of its own."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _, step = stepper(case)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated()


def training(setting: Setting) -> dict:
    """A short distilled training of GFL on `--data`, by the command line, resumed half way."""
    if setting.data is None:
        raise Skip("no --data")
    steps = 40 if setting.on_gpu else 4
    annotations, images = setting.data
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config("kitti/gfl_R_50_aid.yaml", () if setting.on_gpu else SMALL)
        cfg.MODEL.GFL.NUM_CLASSES = len(read_coco_json(Path(annotations))["categories"])
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = setting.device, ""
        cfg.DISTILL.METHODS, cfg.DISTILL.AID.PRESET = ["auto"], ""
        cfg.DISTILL.TEACHER.CONFIG_FILE = f"{folder}/teacher.yaml"
        Path(folder, "teacher.yaml").write_text(plain_student(cfg).dump())
        cfg = with_random_teacher(cfg, Path(folder))
        cfg.DATASETS.COCO_JSON = [["gpu_check", annotations, images]]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ["gpu_check"], []
        cfg.DATALOADER.NUM_WORKERS = 2
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.STEPS = 2, []
        cfg.INPUT.MIN_SIZE_TRAIN = [800 if setting.on_gpu else 128]
        cfg.OUTPUT_DIR = f"{folder}/output"
        Path(folder, "config.yaml").write_text(cfg.dump())
        command = [sys.executable, "-m", "aid_d2", "train", "--resume", "--config-file"]
        for last in (steps // 2, steps):
            options = [f"{folder}/config.yaml", "SOLVER.MAX_ITER", str(last)]
            done = _call([*command, *options], setting.seconds)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
    return {"steps": steps, "resumed_at": steps // 2}
