"""Meta-architectures, the teacher, and the detector families they know."""

from . import backbones  # noqa: F401  (registers them)
from .checks import check_classes
from .distilled_detector import DistilledDetector
from .families import FAMILY_REGISTRY, DetectorFamily, family_of
from .fast_forward import train_fast
from .fcos import FCOS
from .gfl import GFL
from .ignore_regions import mask_ignore_regions
from .observation import Observation
from .teacher import Teacher

__all__ = [
    "FAMILY_REGISTRY",
    "FCOS",
    "GFL",
    "DetectorFamily",
    "DistilledDetector",
    "Observation",
    "Teacher",
    "check_classes",
    "family_of",
    "mask_ignore_regions",
    "train_fast",
]
