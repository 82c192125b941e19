r"""What a step of distillation costs, beside the student's step alone and the teacher's forward.

    python tools/profile_step.py --config-file configs/kitti/retinanet_R_50_aid.yaml \
        --size 800 1344 --images 8

Everything runs in one process, interleaved and repeated; the table has medians. The floor is one
step of the student and one forward of the teacher, with the head if AID is on, as it is configured
(DISTILL.TEACHER.PRECISION). Weights are random and images are noise: cost does not depend on them,
only on the number of objects. `--variants` are the rows:

    method       each of DISTILL.METHODS alone and all of them, with AID as configured
    granularity  all methods with AID off and with each granularity

Memory is the peak that CUDA counts, or without a GPU the resident size of a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from aid_d2 import add_aid_config
from aid_d2.aid import GRANULARITIES
from aid_d2.modeling import family_of, train_fast
from aid_d2.modeling.teacher import load_teacher_config
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

STUDENT, NAIVE, CONFIGURED = "student alone", "teacher forward, float32", "teacher forward"
VARIANTS = ("method", "granularity")


def main() -> None:
    args = parse_arguments()
    cfg = load_config(args)
    with tempfile.TemporaryDirectory() as folder:
        cfg = with_random_teacher(cfg, Path(folder))
        rows = variants(cfg, args.variants)
        timed = {name: stepper(row, name, args) for name, row in rows.items()}
        seconds = interleave(timed, args.repeats)
        shares = {name: parts(timed[name]) for name in rows if is_distilled(name)}
        del timed
        memory = {name: peak_memory(row, name, args) for name, row in rows.items()}
    report = summary(seconds, memory, shares)
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


def load_config(args) -> CfgNode:
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.MODEL.META_ARCHITECTURE != "DistilledDetector":
        raise ValueError(f"{args.config_file} is no distilled detector, and has no teacher.")
    return cfg


def with_random_teacher(cfg: CfgNode, folder: Path) -> CfgNode:
    """The config with a teacher of random weights in a file."""
    teacher = load_teacher_config(cfg.DISTILL.TEACHER.CONFIG_FILE)
    teacher.MODEL.DEVICE = "cpu"
    torch.save({"model": build_model(teacher).state_dict()}, folder / "teacher.pth")
    cfg = cfg.clone()
    cfg.DISTILL.TEACHER.WEIGHTS = str(folder / "teacher.pth")
    return cfg


def variants(cfg: CfgNode, kind: str) -> dict[str, CfgNode]:
    """The config of each row by its name."""
    rows = {STUDENT: changed(cfg, "DISTILL.ENABLED", False)}
    rows[NAIVE] = changed(cfg, "DISTILL.TEACHER.PRECISION", "float32")
    rows[CONFIGURED] = cfg
    methods = list(cfg.DISTILL.METHODS)
    if kind == "granularity":
        rows["without AID"] = changed(cfg, "DISTILL.AID.ENABLED", False)
        for granularity in GRANULARITIES:
            aid = changed(cfg, "DISTILL.AID.ENABLED", True, "DISTILL.AID.GRANULARITY", granularity)
            rows[f"AID, {granularity}"] = aid
        return rows
    if len(methods) > 1:
        for method in methods:
            rows[method] = changed(cfg, "DISTILL.METHODS", [method])
    rows[" + ".join(methods)] = cfg
    return rows


def changed(cfg: CfgNode, *opts) -> CfgNode:
    cfg = cfg.clone()
    cfg.merge_from_list(list(opts))
    return cfg


def is_distilled(name: str) -> bool:
    return name not in (STUDENT, NAIVE, CONFIGURED)


def stepper(cfg: CfgNode, name: str, args):
    """A function that does what the row is named after, once."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = noise(args, cfg, family_of(model.student).num_classes)
    if name in (NAIVE, CONFIGURED):
        teacher, needs_head = model.teacher, cfg.DISTILL.AID.ENABLED
        return lambda: teacher.observe(batch, cfg.INPUT.FORMAT, needs_head)
    train_fast(cfg, model)
    optimizer = build_optimizer(cfg, model)

    def step() -> None:
        with EventStorage(0):
            loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        # A rate of 0 costs the same, and random weights stay as harmless as they are.
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()

    return step


def noise(args, cfg: CfgNode, num_classes: int) -> list[dict]:
    """A batch of random images and objects."""
    generator = torch.Generator().manual_seed(0)
    height, width = args.size
    size, batch = torch.tensor([width, height]), []
    for _ in range(args.images):
        side = size * (0.05 + 0.3 * torch.rand(args.objects, 2, generator=generator))
        corner = (size - side) * torch.rand(args.objects, 2, generator=generator)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corner, corner + side], dim=1))
        instances.gt_classes = torch.randint(num_classes, (args.objects,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def interleave(steps: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each; they run in turn, so that what disturbs one disturbs the others."""
    times = defaultdict(list)
    for _ in range(repeats + 1):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def parts(step) -> dict[str, float]:
    """Seconds of each part of a distilled step, forward, by the labels of DistilledDetector."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
        synchronize()
    return {
        event.key.removeprefix("aid_d2."): max(event.cpu_time_total, event.device_time_total) / 1e6
        for event in profiler.key_averages()
        if event.key.startswith("aid_d2.")
    }


def peak_memory(cfg: CfgNode, name: str, args) -> float:
    """MB that two steps need: on the GPU, or of a process that does nothing else."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        step = stepper(cfg, name, args)
        torch.cuda.reset_peak_memory_stats()
        step(), step()
        return torch.cuda.max_memory_allocated() / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(resident, (cfg.dump(), name, args))


def resident(text: str, name: str, args) -> float:
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    step = stepper(cfg, name, args)
    step(), step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summary(seconds: dict, memory: dict, shares: dict) -> dict:
    """The medians and their ratios, per row."""
    student, teacher = seconds[STUDENT], seconds[CONFIGURED]
    return {
        "student_step_s": student,
        "teacher_forward_float32_s": seconds[NAIVE],
        "teacher_forward_s": teacher,
        "student_memory_mb": memory[STUDENT],
        "rows": {
            name: {
                "distilled_step_s": value,
                "ratio_to_floor": value / (student + teacher),
                "ratio_to_student": value / student,
                "peak_memory_ratio": memory[name] / memory[STUDENT],
                "parts_s": shares[name],
            }
            for name, value in seconds.items()
            if is_distilled(name)
        },
    }


def table(report: dict) -> str:
    lines = [
        f"student's step {report['student_step_s']:.3f} s, teacher's forward "
        f"{report['teacher_forward_s']:.3f} s (float32 "
        f"{report['teacher_forward_float32_s']:.3f} s), student's memory "
        f"{report['student_memory_mb']:.0f} MB"
    ]
    rows = [
        {
            "": name,
            "step (s)": f"{row['distilled_step_s']:.3f}",
            "/ floor": f"{row['ratio_to_floor']:.2f}",
            "/ student": f"{row['ratio_to_student']:.2f}",
            "memory / student": f"{row['peak_memory_ratio']:.2f}",
            "parts, forward (s)": ", ".join(f"{k} {v:.3f}" for k, v in row["parts_s"].items()),
        }
        for name, row in report["rows"].items()
    ]
    return "\n".join([*lines, tabulate(rows, headers="keys", disable_numparse=True)])


if __name__ == "__main__":
    main()
