"""What is wrong with a distilled detector, told before it trains."""

import logging
from collections.abc import Sequence
from operator import attrgetter

from torch import nn

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.registered import UnknownClassesError, require_same_classes
from ..distillers import Distiller
from .context import DistillContext
from .modes import unwrapped
from .teacher import Teacher, teacher_of
from .wrappers import wrap

logger = logging.getLogger(__name__)


def check_nonnegative(cfg: CfgNode, *keys: str) -> None:
    """
    Raises:
        ValueError: a number is negative or not finite.
    """
    for key in keys:
        value = attrgetter(key)(cfg)
        if not 0 <= value < float("inf"):
            raise ValueError(f"{key} is {value}; it has to be a finite number, 0 or more.")


def check_input_formats(input_format: str, teacher: Teacher) -> None:
    """
    Raises:
        ValueError: the channels of the student's images are not those of the teacher's.
    """
    if sorted(input_format) != sorted(teacher.wrapper.input_format):
        raise ValueError(
            f"INPUT.FORMAT is {input_format!r} for the student and "
            f"{teacher.wrapper.input_format!r} for the teacher. Channels can be reordered but not "
            "converted: use a teacher that was trained on the same ones."
        )


def check_recorded_modules(
    cfg: CfgNode, context: DistillContext, distillers: dict[str, Distiller]
) -> None:
    """
    Raises:
        ValueError: a method looks into a backbone that is to be compiled.
    """
    for side, key, compiled in (
        ("student", "SOLVER.COMPILE", cfg.SOLVER.COMPILE),
        ("teacher", "DISTILL.TEACHER.COMPILE", cfg.DISTILL.TEACHER.COMPILE),
    ):
        wrapper = getattr(context, side)
        inside = set(wrapper.model.backbone.modules()) - {wrapper.model.backbone}
        for name, distiller in distillers.items():
            if compiled and not inside.isdisjoint(distiller.recorded_modules(wrapper, side)):
                raise ValueError(
                    f"DISTILL.METHODS: {name} looks into the backbone, which a compiled one does "
                    f"not allow. Set {key} False."
                )


def check_classes(model: nn.Module, datasets: Sequence[str]) -> None:
    """Compare a detector and its teacher with the data sets of its training and evaluation, once
    those are loaded. A teacher's classes of other names are told by a warning.

    Raises:
        ValueError: a data set has another number of classes than the detector, or than the teacher
            whose loss on its labels AID needs; or the teacher, or the first of the data sets, has
            its classes in another order.
    """
    model = unwrapped(model)
    teacher = teacher_of(model)
    plain = getattr(model, "student", model)
    known = hasattr(getattr(plain, "backbone", None), "output_shape")
    wanted = wrap(plain).num_classes if known else None
    judging = teacher.wrapper.num_classes if teacher is not None and model.aid.enabled else None
    theirs = teacher.class_names if teacher is not None and model.needs_teacher_head else None
    listing = {name: MetadataCatalog.get(name).get("thing_classes") for name in datasets}
    listing = {name: classes for name, classes in listing.items() if classes is not None}
    for name, classes in listing.items():
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
        first = next(iter(listing))
        for owner, names in ((f"the data set {first!r}", listing[first]), ("the teacher", theirs)):
            _compare(owner, names or classes, name, classes)


def check_teacher_on(datasets: Sequence[str], teacher: Teacher) -> None:
    """Compare a teacher with the data sets that it is to be evaluated on.

    Raises:
        ValueError: one has another number of classes, or has them in another order.
    """
    theirs = teacher.wrapper.num_classes
    for name in datasets:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is None:
            continue
        if theirs not in (None, len(classes)):
            raise ValueError(
                f"--eval-teacher: the teacher has {theirs} classes, and the data set {name!r} "
                f"{len(classes)}, so that its AP cannot be told. Leave --eval-teacher away."
            )
        _compare("the teacher", teacher.class_names or classes, name, classes)


def _compare(owner: str, names: Sequence[str], dataset: str, classes: Sequence[str]) -> None:
    """As :func:`require_same_classes`, where names of which none is known are a warning."""
    try:
        require_same_classes(owner, names, dataset, classes)
    except UnknownClassesError as error:
        logger.warning(f"{error} They are compared in this order.")
