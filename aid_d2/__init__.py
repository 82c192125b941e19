"""aid_d2: adaptive instance distillation of object detectors, on Detectron2.

Importing the package registers its meta-architectures, distillers and data sets.
"""

# Detectron2 can be imported only after this.
from . import compat

compat.prepare()

from . import data, distillers  # noqa: E402,F401
from .aid import AID  # noqa: E402
from .config import CONFIG_EXTENSIONS, add_aid_config, load_config  # noqa: E402
from .modeling import backbones, fcos, gfl, ignore_regions  # noqa: E402,F401
from .modeling.distilled_detector import DistilledDetector  # noqa: E402

__all__ = ["AID", "CONFIG_EXTENSIONS", "DistilledDetector", "add_aid_config", "load_config"]
