"""Where the data sets are."""

import os
from functools import cache
from pathlib import Path


@cache
def datasets_root() -> Path:
    """Returns `$DETECTRON2_DATASETS`, by default `datasets`, as Detectron2's own data sets do.

    Fixed at the first call, which is at import: metadata registered then must stay true.
    """
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
