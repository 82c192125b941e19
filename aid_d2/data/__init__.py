"""Data sets, registered with Detectron2 when this package is imported, and a training mapper."""

from . import builtin  # noqa: F401
from .coco_json import register_coco_json
from .ignore_regions import IgnoreRegionMapper

__all__ = ["IgnoreRegionMapper", "register_coco_json"]
