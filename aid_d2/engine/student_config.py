"""The student's config for Detectron2 alone."""

import os

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..config import plain_student

FILE_NAME = "student.yaml"


def write_student_config(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/student.yaml, which scripts without aid_d2 can load.

    It has the keys that Detectron2 knows, and MODEL.WEIGHTS of the finished training. A detector or
    backbone of aid_d2 has none: it needs aid_d2 anyway.
    """
    student = plain_student(cfg)
    parts = (
        META_ARCH_REGISTRY.get(student.MODEL.META_ARCHITECTURE),
        BACKBONE_REGISTRY.get(student.MODEL.BACKBONE.NAME),
    )
    if not all(part.__module__.startswith("detectron2.") for part in parts):
        return
    student.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    with open(os.path.join(cfg.OUTPUT_DIR, FILE_NAME), "w") as file:
        file.write(_known_to(get_cfg(), student).dump())


def _known_to(defaults: CfgNode, cfg: CfgNode) -> CfgNode:
    """The keys of a config that the defaults have."""
    result = CfgNode()
    for key, default in defaults.items():
        value = cfg[key]
        result[key] = _known_to(default, value) if isinstance(default, CfgNode) else value
    return result
