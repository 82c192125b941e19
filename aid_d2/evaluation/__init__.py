"""Metrics beside COCO's: KITTI's own benchmark, and the AID paper's AP at IoU 0.5."""

from .evaluator import KITTIEvaluator
from .frames import Detections, GroundTruth, ground_truth_of
from .kitti import kitti_ap
from .voc import voc_ap

__all__ = [
    "Detections",
    "GroundTruth",
    "KITTIEvaluator",
    "ground_truth_of",
    "kitti_ap",
    "voc_ap",
]
