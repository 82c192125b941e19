"""Plain data that passes between the parts of aid_d2; imports nothing of them."""

from .batch import DistillBatch
from .levels import Level, LevelPair, LevelShape, split_levels
from .losses import BACKGROUND, IGNORED, UnreducedLosses
from .objects import PSEUDO_LABELED, Objects, split_ignored
from .outputs import Call, DetectorOutputs
from .predictions import DensePredictions
from .weights import DistillWeights, pool_boxes

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "PSEUDO_LABELED",
    "Call",
    "DensePredictions",
    "DetectorOutputs",
    "DistillBatch",
    "DistillWeights",
    "Level",
    "LevelPair",
    "LevelShape",
    "Objects",
    "UnreducedLosses",
    "pool_boxes",
    "split_ignored",
    "split_levels",
]
