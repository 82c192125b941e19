"""Distillation methods, one file per method; docs/write_a_method.md shows how to write another."""

# A file registers its method as it is imported.
from . import (  # noqa: F401
    adl,
    attention_guided,
    bckd,
    crosskd,
    cwd,
    defeat,
    dist2,
    dkd,
    fgd,
    fgfi,
    gid,
    gkd,
    hint,
    ld,
    mgd,
    non_local,
    pairwise,
    pkd,
)
from .base import DISTILLER_REGISTRY, Distiller, LevelDistiller
from .build import build_distillers

__all__ = ["DISTILLER_REGISTRY", "Distiller", "LevelDistiller", "build_distillers"]
