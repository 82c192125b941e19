"""Detector wrappers: what distillation needs to know of each, one file per wrapper."""

from . import faster_rcnn, fcos, gfl, retinanet  # noqa: F401  (registers them)
from .base import WRAPPER_REGISTRY, DetectorWrapper, wrap

__all__ = ["WRAPPER_REGISTRY", "DetectorWrapper", "wrap"]
