"""Detector families: what distillation needs to know of each, one file per family."""

from . import faster_rcnn, fcos, gfl, retinanet  # noqa: F401  (registers them)
from .base import FAMILY_REGISTRY, DetectorFamily, family_of

__all__ = ["FAMILY_REGISTRY", "DetectorFamily", "family_of"]
