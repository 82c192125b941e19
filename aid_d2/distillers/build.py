"""Distillers from the config."""

import logging

from detectron2.config import CfgNode

from ..config import CONFIG_EXTENSIONS
from ..modeling.context import DistillContext
from ..modeling.wrappers import known_detectors
from ..suggestions import did_you_mean
from .base import DISTILLER_REGISTRY, Distiller

logger = logging.getLogger(__name__)

# In DISTILL.METHODS: CrossKD where it can serve the detectors, else PKD. On pretrained students
# they did best: docs/which_method.md.
AUTO = "auto"


def add_config(cfg: CfgNode) -> None:
    """Add the node DISTILL.<NAME> of each method."""
    for name, distiller in DISTILLER_REGISTRY:
        cfg.DISTILL[name.upper()] = distiller.config()


CONFIG_EXTENSIONS.append(add_config)


def build_distillers(cfg: CfgNode, context: DistillContext) -> dict[str, Distiller]:
    """The methods of DISTILL.METHODS, by name; `auto` alone is the best one that fits.

    Raises:
        ValueError: an unknown or repeated name, or none; or a method that cannot serve the
            detectors.
    """
    if list(cfg.DISTILL.METHODS) == [AUTO]:
        return _build_best(cfg, context)
    known = [name for name, _ in DISTILLER_REGISTRY]
    for name in cfg.DISTILL.METHODS:
        if name not in known:
            raise ValueError(
                f"DISTILL.METHODS: there is no method {name!r}.{did_you_mean(name, known)} The "
                f"methods are {', '.join(known)}."
            )
    repeated = len(set(cfg.DISTILL.METHODS)) < len(cfg.DISTILL.METHODS)
    if repeated or not cfg.DISTILL.METHODS:
        raise ValueError(
            f"DISTILL.METHODS is {list(cfg.DISTILL.METHODS)}; name methods of {known}, each once, "
            f"or {AUTO!r} alone. To train the student alone set DISTILL.ENABLED False."
        )
    return {name: _build(name, cfg, context) for name in cfg.DISTILL.METHODS}


def _build_best(cfg: CfgNode, context: DistillContext) -> dict[str, Distiller]:
    try:
        best = {"CrossKD": _build("CrossKD", cfg, context)}
        logger.info(f"DISTILL.METHODS {AUTO} is CrossKD.")
    except ValueError as reason:
        best = {"PKD": _build("PKD", cfg, context)}
        logger.info(f"DISTILL.METHODS {AUTO} is PKD, since CrossKD does not fit. {reason}")
    return best


def _build(name: str, cfg: CfgNode, context: DistillContext) -> Distiller:
    method = DISTILLER_REGISTRY.get(name)
    if method.needs_predictions:
        _check_same_predictions(name, context)
    return method(cfg.DISTILL[name.upper()], context)


def _check_same_predictions(name: str, context: DistillContext) -> None:
    student, teacher = context.student, context.teacher
    for role, wrapper in (("student", student), ("teacher", teacher)):
        if wrapper.head is None:
            raise ValueError(
                f"DISTILL.METHODS: {name} compares dense predictions, and a "
                f"{wrapper.name} {role} has none that are known. "
                f"{known_detectors()} have; for others register a DetectorWrapper."
            )
    problem = None
    if student.detector is not teacher.detector:
        problem = f"a {student.detector.__name__} and a {teacher.detector.__name__}"
    elif student.num_classes != teacher.num_classes:
        problem = f"{student.num_classes} and {teacher.num_classes} classes"
    elif not len(context.pairs) == len(student.levels) == len(teacher.levels):
        problem = "different pyramid levels"
    elif not student.same_anchors(teacher):
        problem = "different anchors"
    elif vars(student.box_transform) != vars(teacher.box_transform):
        problem = "different box regression (BBOX_REG_WEIGHTS, or MODEL.GFL.REG_MAX)"
    if problem:
        raise ValueError(
            f"DISTILL.METHODS: {name} compares the predictions of student and teacher anchor by "
            f"anchor, but these have {problem}. Make them agree, or use a method that compares "
            "features, such as PKD."
        )
