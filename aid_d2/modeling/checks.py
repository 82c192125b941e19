"""What is wrong with a distilled detector, told before it trains."""

import logging
from collections.abc import Sequence

from torch import nn

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..aid import GRANULARITIES, NORMALIZERS
from .precision import PRECISIONS
from .teacher import Teacher
from .wrappers import DetectorWrapper, wrap

logger = logging.getLogger(__name__)

# What defines the losses of Detectron2's RetinaNet, FCOS, RPN and box head, and of GFL.
_LOSS_CONSTANTS = (
    "box_reg_loss_type",
    "smooth_l1_beta",
    "focal_loss_alpha",
    "focal_loss_gamma",
    "quality_focal_loss_beta",
    "giou_loss_weight",
    "distribution_focal_loss_weight",
    "loss_weight",
)


def check_keys(cfg: CfgNode) -> None:
    aid = cfg.DISTILL.AID
    choices = (
        ("DISTILL.AID.GRANULARITY", aid.GRANULARITY, GRANULARITIES),
        ("DISTILL.AID.NORMALIZER", aid.NORMALIZER, NORMALIZERS),
        ("DISTILL.PRECISION", cfg.DISTILL.PRECISION, PRECISIONS),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; choose one of {allowed}.")
    numbers = (
        ("DISTILL.AID.ALPHA", aid.ALPHA),
        ("DISTILL.WEIGHT", cfg.DISTILL.WEIGHT),
        ("DISTILL.WARMUP_ITERS", cfg.DISTILL.WARMUP_ITERS),
    )
    for name, value in numbers:
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; it has to be a finite number, 0 or more.")


def check_taps(cfg: CfgNode, student: nn.Module, teacher: Teacher, distillers: dict) -> None:
    for key, compiled, model in (
        ("SOLVER.COMPILE", cfg.SOLVER.COMPILE, student),
        ("DISTILL.TEACHER.COMPILE", cfg.DISTILL.TEACHER.COMPILE, teacher.model),
    ):
        inside = set(model.backbone.modules()) - {model.backbone}
        for name, distiller in distillers.items():
            if compiled and not inside.isdisjoint(distiller.taps(wrap(model))):
                raise ValueError(
                    f"DISTILL.METHODS: {name} looks into the backbone, which a compiled one does "
                    f"not allow. Set {key} False."
                )


def check_compatible(cfg: CfgNode, student: nn.Module, teacher: Teacher) -> None:
    if sorted(cfg.INPUT.FORMAT) != sorted(teacher.input_format):
        raise ValueError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r} for the student and {teacher.input_format!r} "
            "for the teacher. Channels can be reordered but not converted: use a teacher that was "
            "trained on the same ones."
        )
    if not cfg.DISTILL.AID.ENABLED:
        return
    teacher.wrapper.check_losses()
    expected, found = wrap(student).num_classes, teacher.wrapper.num_classes
    if expected not in (None, found):
        raise ValueError(
            f"The teacher has {found} classes and the student {expected}. AID needs the teacher's "
            "loss on the student's labels: use a teacher of the same classes, or set "
            "DISTILL.AID.ENABLED False."
        )
    if cfg.DISTILL.AID.RELATIVE:
        _check_comparable_losses(wrap(student), teacher.wrapper)


def _check_comparable_losses(student: DetectorWrapper, teacher: DetectorWrapper) -> None:
    student.check_losses()
    described = [
        {
            "detector": type(x.model).__name__,
            "strides": [level.stride for level in x.levels],
            "anchors of a location": x.anchor_generator.num_cell_anchors,
            "padded to a multiple of": x.model.backbone.size_divisibility,
            "box transform": vars(x.box_transform),
            **{
                name: [getattr(module, name, None) for module in x.loss_modules]
                for name in _LOSS_CONSTANTS
            },
        }
        for x in (student, teacher)
    ]
    for what, own in described[0].items():
        theirs = described[1][what]
        if own != theirs:
            raise ValueError(
                "DISTILL.AID.RELATIVE subtracts the student's losses from the teacher's, and needs "
                f"detectors of one kind: {what} is {own} for the student and {theirs} for the "
                "teacher. Set it False."
            )


def check_classes(model: nn.Module, datasets: Sequence[str]) -> None:
    """Compare a detector and its teacher with the data sets of its training and evaluation, once
    those are loaded. Where the classes of the teacher's own data sets, as far as known, have other
    names, a warning says so.

    Raises:
        ValueError: a data set has another number of classes than the detector, or than the teacher
            whose loss on its labels AID needs.
    """
    model = getattr(model, "module", model)
    teacher = getattr(model, "teacher", None)
    wanted = wrap(getattr(model, "student", model)).num_classes
    judging = teacher.wrapper.num_classes if teacher is not None and model.weigh else None
    compared = teacher.datasets if teacher is not None and model.needs_teacher_head else ()
    for name in datasets:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is None:
            continue
        listed = f"The data set {name!r} has {len(classes)} classes ({', '.join(classes)}), "
        if wanted not in (None, len(classes)):
            raise ValueError(
                f"{listed}the detector has {wanted}: set its NUM_CLASSES (of MODEL.RETINANET, "
                f"MODEL.GFL, MODEL.FCOS or MODEL.ROI_HEADS) to {len(classes)}."
            )
        if judging not in (None, len(classes)):
            raise ValueError(
                f"{listed}the teacher {judging}. AID needs the teacher's loss on the labels: use a "
                "teacher of the same classes, or set DISTILL.AID.ENABLED False."
            )
        for other in compared:
            theirs = MetadataCatalog.get(other).get("thing_classes", classes)
            if list(theirs) != list(classes):
                logger.warning(
                    f"The teacher's data set {other!r} has the classes {theirs}, and {name!r} has "
                    f"{classes}. They are compared in this order: make sure that they mean the same."
                )
