"""Detector wrappers: what distillation needs of each kind of detector, one file per kind."""

from . import faster_rcnn, fcos, gfl, retinanet  # noqa: F401  (registers them)
from .base import WRAPPER_REGISTRY, DetectorWrapper, known_detectors, wrap, wrapper_class

__all__ = [
    "WRAPPER_REGISTRY",
    "DetectorWrapper",
    "known_detectors",
    "wrap",
    "wrapper_class",
]
