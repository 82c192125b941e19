"""GFL: *Generalized Focal Loss* (Li et al., NeurIPS 2020), as a Detectron2 meta-architecture."""

from .gfl import GFL

__all__ = ["GFL"]
