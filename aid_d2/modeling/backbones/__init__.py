"""Backbones that Detectron2 has no builder for: timm's networks, GFL's and FCOS' pyramids."""

from .checks import warn_frozen_random
from .folding import NORMS, fold, fold_norms_after_convolutions
from .pyramids import LastLevelP6P7Linear
from .timm_network import TimmNetwork, build_timm_network

__all__ = [
    "NORMS",
    "LastLevelP6P7Linear",
    "TimmNetwork",
    "build_timm_network",
    "fold",
    "fold_norms_after_convolutions",
    "warn_frozen_random",
]
