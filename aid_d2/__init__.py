"""aid_d2: adaptive instance distillation of object detectors, on Detectron2.

Importing the package registers its meta-architecture, distillers and data sets.
"""

# Detectron2 can be imported only after this.
from . import compat

compat.prepare()

from . import data, modeling  # noqa: E402,F401
from .config import CONFIG_EXTENSIONS, add_aid_config, load_config  # noqa: E402

__all__ = ["CONFIG_EXTENSIONS", "add_aid_config", "load_config"]
