"""What is about to be trained, in a few lines."""

from pathlib import Path

from torch import nn

from detectron2.engine import DefaultTrainer

from ..modeling.modes import unwrapped
from ..modeling.teacher import teacher_of
from .metrics import read_metrics


def summary(trainer: DefaultTrainer) -> str:
    """A table of what a training does, to be logged before its first step."""
    cfg = trainer.cfg
    model = unwrapped(trainer.model)
    distilled = teacher_of(model) is not None
    student = model.student if distilled else model
    rows = {"student" if distilled else "detector": f"{_size(student)}, from {_origin(cfg)}"}
    if distilled:
        weights = cfg.DISTILL.TEACHER.WEIGHTS
        rows |= {
            "teacher": f"{_size(model.teacher.model)}, {weights}{_known_ap(weights)}",
            "levels": "strides " + ", ".join(str(pair.stride) for pair in model.context.pairs),
            "methods": f"{', '.join(model.distiller)}, times {model.weight:g}",
            "AID": str(model.aid),
        }
    rows |= {
        "data": f"{', '.join(cfg.DATASETS.TRAIN)}, {cfg.SOLVER.IMS_PER_BATCH} images a step",
        "steps": f"{trainer.start_iter} to {trainer.max_iter}",
        "results": cfg.OUTPUT_DIR,
    }
    return "\n".join(["This training:", *(f"  {key:<10}{value}" for key, value in rows.items())])


def _size(model: nn.Module) -> str:
    count = sum(x.numel() for x in model.parameters()) / 1e6
    return f"{type(model).__name__}, {count:.1f} M parameters"


def _origin(cfg) -> str:
    timm = cfg.MODEL.TIMM
    if "timm" in cfg.MODEL.BACKBONE.NAME and not cfg.MODEL.WEIGHTS:
        return timm.CHECKPOINT or ("timm's weights" if timm.PRETRAINED else "random weights")
    return cfg.MODEL.WEIGHTS or "random weights"


def _known_ap(weights: str) -> str:
    """The last AP that the teacher's own training wrote beside its weights."""
    metrics = read_metrics(Path(weights).with_name("metrics.json"))
    found = [x["bbox/AP"] for x in metrics if "bbox/AP" in x]
    return f", AP {found[-1]:.1f}" if found else ""
