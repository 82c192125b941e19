"""Data sets, registered with Detectron2 when this package is imported, and a training mapper."""

from . import builtin  # noqa: F401
from .ignore_regions import IgnoreRegionMapper
from .own_data import register_coco_json, register_own_data
from .semi_supervised import build_mixed_train_loader

__all__ = [
    "IgnoreRegionMapper",
    "build_mixed_train_loader",
    "register_coco_json",
    "register_own_data",
]
