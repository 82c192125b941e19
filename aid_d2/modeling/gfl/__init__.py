"""GFL: *Generalized Focal Loss* (Li et al., NeurIPS 2020), as a Detectron2 meta-architecture."""

from .gfl import GFL, add_gfl_config

__all__ = ["GFL", "add_gfl_config"]
