"""Meta-architectures, the teacher, and the detector wrappers they know."""

from . import backbones  # noqa: F401  (registers them)
from .checks import check_classes
from .distilled_detector import DistilledDetector
from .fcos import FCOS
from .gfl import GFL
from .ignore_regions import mask_ignore_regions
from .outputs import DetectorOutputs
from .precision import train_fast
from .teacher import Teacher
from .wrappers import WRAPPER_REGISTRY, DetectorWrapper, wrap

__all__ = [
    "WRAPPER_REGISTRY",
    "FCOS",
    "GFL",
    "DetectorWrapper",
    "DistilledDetector",
    "DetectorOutputs",
    "Teacher",
    "check_classes",
    "wrap",
    "mask_ignore_regions",
    "train_fast",
]
