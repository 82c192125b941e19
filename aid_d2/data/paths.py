"""Where the data sets are."""

import os
import tempfile
from functools import cache
from pathlib import Path


@cache
def datasets_root() -> Path:
    """Return `$DETECTRON2_DATASETS`, by default `datasets`, as Detectron2's own data sets do.

    Fixed at the first call, which is at import: metadata registered then must stay true.
    """
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


@cache
def temporary_dir() -> tempfile.TemporaryDirectory:
    """A directory for annotations that this process converted; gone when it ends."""
    return tempfile.TemporaryDirectory(prefix="aid_d2-")
