"""Meta-architectures, the teacher, and the detector families they know."""

from .distilled_detector import DistilledDetector
from .families import FAMILY_REGISTRY, DetectorFamily, check_num_classes, family_of
from .ignore_regions import mask_ignore_regions
from .observation import Observation
from .teacher import Teacher

__all__ = [
    "FAMILY_REGISTRY",
    "DetectorFamily",
    "DistilledDetector",
    "Observation",
    "Teacher",
    "check_num_classes",
    "family_of",
    "mask_ignore_regions",
]
