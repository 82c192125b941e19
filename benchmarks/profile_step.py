r"""What a step of distillation costs, beside the student's step alone and the teacher's forward.

    python benchmarks/profile_step.py --config-file configs/kitti/retinanet_R_50_aid.yaml \
        --size 800 1344 --images 8

Everything runs in one process, interleaved and repeated; the table has medians. The floor is one
step of the student and one forward of the teacher as it is configured (DISTILL.PRECISION),
with its head where the row needs it. Weights are random and images are noise, on which cost does
not depend. `--variants` are the rows:

    method       each of DISTILL.METHODS alone and all of them, with AID as configured
    granularity  all methods with AID off and with each granularity
    setting      all methods with keys that make a step cheaper or dearer, one by one
    objects      1, 10, 50 and 200 objects in each image
    images       a quarter, a half, all and twice of `--images`
    size         half, all and twice of `--size`

Memory is the peak that CUDA counts, or without a GPU the resident size of a process of its own.
"""

import argparse
import gc
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

from aid_d2 import DistilledDetector, load_config
from aid_d2.aid import GRANULARITIES
from aid_d2.config import DISTILLED, default_config, use_cpu_without_gpu
from aid_d2.engine.step_cost import (
    Case,
    interleave,
    observer,
    stepper,
    synchronize,
    with_random_teacher,
)
from detectron2.config import CfgNode
from detectron2.modeling import build_model

VARIANTS = ("method", "granularity", "setting", "objects", "images", "size")
OBJECTS = (1, 10, 50, 200)
SETTINGS = (
    "DISTILL.PRECISION float32",
    "SOLVER.CHANNELS_LAST True",
    "SOLVER.BF16 True",
    "SOLVER.CHANNELS_LAST True SOLVER.BF16 True",
)


@dataclass
class Row:
    """A distilled detector, and the names of the steps that it is compared with."""

    case: Case
    model: DistilledDetector
    student: str
    teacher: str
    exact_teacher: str


def main() -> None:
    args = parse_arguments()
    cfg = config_of(args)
    with tempfile.TemporaryDirectory() as folder:
        cfg = with_random_teacher(cfg, Path(folder))
        cases = variants(Case(cfg, *args.size, args.images, args.objects), args.variants)
        rows, steps = prepare(cases)
        seconds = interleave(steps, args.repeats)
        shares = {name: parts(row.model, steps[name]) for name, row in rows.items()}
        del steps
        weighed = {x: row.case for x, row in rows.items()}
        weighed.update({row.student: row.case.student for row in rows.values()})
        memory = {name: peak_memory(case) for name, case in weighed.items()}
    report = {"rows": {x: measures(x, row, seconds, memory, shares) for x, row in rows.items()}}
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="of a distilled detector")
    parser.add_argument("--size", nargs=2, type=int, default=(256, 256), metavar=("H", "W"))
    parser.add_argument("--images", type=int, default=8, help="in a batch")
    parser.add_argument("--objects", type=int, default=8, help="in an image")
    parser.add_argument("--repeats", type=int, default=9, help="of each, after one to warm up")
    parser.add_argument("--variants", choices=VARIANTS, default="method")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    return parser.parse_args()


def config_of(args) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    use_cpu_without_gpu(cfg)
    if cfg.MODEL.META_ARCHITECTURE != DISTILLED:
        raise ValueError(f"{args.config_file} is no distilled detector, and has no teacher.")
    return cfg


def variants(case: Case, kind: str) -> dict[str, Case]:
    """The distilled detectors to be measured, by the names of their rows."""
    methods = list(case.cfg.DISTILL.METHODS)
    if kind == "method":
        single = {x: case.changed("DISTILL.METHODS", [x]) for x in methods}
        return {**single, " + ".join(methods): case}
    if kind == "granularity":
        rows = {"without AID": case.changed("DISTILL.AID.ENABLED", False)}
        for x in GRANULARITIES:
            keys = {"ENABLED": True, "PRESET": "", "GRANULARITY": x}
            opts = [y for key, value in keys.items() for y in (f"DISTILL.AID.{key}", value)]
            rows[f"AID, {x}"] = case.changed(*opts)
        return rows
    if kind == "setting":
        return {"as configured": case, **{x: case.changed(*x.split()) for x in SETTINGS}}
    if kind == "objects":
        cases = [replace(case, objects=x) for x in OBJECTS]
    elif kind == "images":
        cases = [replace(case, images=max(round(x * case.images), 1)) for x in (0.25, 0.5, 1, 2)]
    else:
        cases = [
            replace(case, height=round(x * case.height), width=round(x * case.width))
            for x in (0.5, 1, 2)
        ]
    return {x.batch_name: x for x in cases}


def prepare(cases: dict[str, Case]) -> tuple[dict[str, Row], dict[str, Callable[[], None]]]:
    """Rows by name, and by name all functions to be timed: theirs and those they are compared with.

    Rows with the same batch and settings are compared with the same step of the student.
    """
    rows, steps = {}, {}
    for name, case in cases.items():
        model, steps[name] = stepper(case)
        head, solver = model.needs_teacher_head, case.cfg.SOLVER
        row = Row(
            case,
            model,
            student=f"student, {case.batch_name}, {solver.BF16=}, {solver.CHANNELS_LAST=}",
            teacher=f"teacher in {case.cfg.DISTILL.PRECISION}, {case.batch_name}, {head=}",
            exact_teacher=f"teacher in float32, {case.batch_name}, {head=}",
        )
        rows[name] = row
        if row.student not in steps:
            steps[row.student] = stepper(case.student)[1]
        if row.teacher not in steps:
            steps[row.teacher] = observer(case, model)
        if row.exact_teacher not in steps:
            exact = case.changed("DISTILL.PRECISION", "float32")
            steps[row.exact_teacher] = observer(exact, build_model(exact.cfg))
    return rows, steps


def parts(model: DistilledDetector, step: Callable[[], None]) -> dict[str, float]:
    """Seconds of each part of a distilled step, forward."""
    wrapper, weights = model.context.teacher, Timed(model.aid)
    teacher = Timed(wrapper.forward_features)
    modules = {"student": TimedModule(model.student)}
    modules.update({name: TimedModule(method) for name, method in model.distiller.items()})
    wrapper.forward_features, model.aid = teacher, weights
    step()
    wrapper.forward_features, model.aid = teacher.inner, weights.inner
    seconds = {"teacher": teacher.seconds, "weights": weights.seconds}
    return {**{name: x.close() for name, x in modules.items()}, **seconds}


class Timed:
    """Something callable, and the seconds that its calls took."""

    def __init__(self, inner):
        self.inner, self.seconds = inner, 0.0

    def __call__(self, *args):
        synchronize()
        start = time.perf_counter()
        result = self.inner(*args)
        synchronize()
        self.seconds += time.perf_counter() - start
        return result

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


class TimedModule:
    """The seconds that the forward passes of a module took."""

    def __init__(self, module: nn.Module):
        self.seconds = 0.0
        self.handles = (
            module.register_forward_pre_hook(self._start),
            module.register_forward_hook(self._end),
        )

    def _start(self, *args) -> None:
        synchronize()
        self.seconds -= time.perf_counter()

    def _end(self, *args) -> None:
        synchronize()
        self.seconds += time.perf_counter()

    def close(self) -> float:
        for handle in self.handles:
            handle.remove()
        return self.seconds


def peak_memory(case: Case) -> float:
    """MB that two steps need: on the GPU, or of a process that does nothing else."""
    if case.cfg.MODEL.DEVICE.startswith("cuda"):
        gc.collect()  # detectors that were measured before, and hold themselves
        torch.cuda.empty_cache()
        _, step = stepper(case)
        torch.cuda.reset_peak_memory_stats()
        step(), step()
        return torch.cuda.max_memory_allocated() / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(resident, (replace(case, cfg=None), case.cfg.dump()))


def resident(case: Case, text: str) -> float:
    """MB of this process after two steps; the config comes as text."""
    cfg = default_config()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    _, step = stepper(replace(case, cfg=cfg))
    step(), step()
    # Not `ru_maxrss`, in which a process starts with the peak of its parent.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) / 1024


def measures(name: str, row: Row, seconds: dict, memory: dict, shares: dict) -> dict:
    """The medians of a row and their ratios."""
    student, teacher, distilled = seconds[row.student], seconds[row.teacher], seconds[name]
    return {
        "student_step_s": student,
        "teacher_forward_float32_s": seconds[row.exact_teacher],
        "teacher_forward_s": teacher,
        "distilled_step_s": distilled,
        "ratio_to_floor": distilled / (student + teacher),
        "ratio_to_student": distilled / student,
        "student_memory_mb": memory[row.student],
        "peak_memory_ratio": memory[name] / memory[row.student],
        "parts_s": shares[name],
    }


def table(report: dict) -> str:
    rows = [
        {
            "": name,
            "student (s)": f"{row['student_step_s']:.3f}",
            "teacher (s)": f"{row['teacher_forward_s']:.3f}",
            "float32": f"{row['teacher_forward_float32_s']:.3f}",
            "step (s)": f"{row['distilled_step_s']:.3f}",
            "/ floor": f"{row['ratio_to_floor']:.2f}",
            "/ student": f"{row['ratio_to_student']:.2f}",
            "memory / student": f"{row['peak_memory_ratio']:.2f}",
            "parts, forward (s)": ", ".join(f"{k} {v:.3f}" for k, v in row["parts_s"].items()),
        }
        for name, row in report["rows"].items()
    ]
    return tabulate(rows, headers="keys", disable_numparse=True)


if __name__ == "__main__":
    main()
