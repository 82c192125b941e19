"""Distillation methods, one file per method."""

from .attention_guided import AttentionGuided
from .base import DISTILLER_REGISTRY, Distiller, Setting
from .build import build_distillers
from .non_local import NonLocal

__all__ = [
    "DISTILLER_REGISTRY",
    "AttentionGuided",
    "Distiller",
    "NonLocal",
    "Setting",
    "build_distillers",
]
