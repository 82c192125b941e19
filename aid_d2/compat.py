"""Detectron2 without its compiled extension, and v0.6 on current NumPy, Pillow and setuptools.

:func:`prepare` runs when ``aid_d2`` is imported, before any other Detectron2 import. Each repair
looks first whether it is needed: a compiled and newer Detectron2 is left as it is.
"""

import importlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

# What was done, for a log that is set up later.
REPAIRS: list[str] = []

_REMEDY = (
    "this Detectron2 was installed without its C++ extension. Build Detectron2 from source to use "
    "this operation; the detectors that aid_d2 ships do not need it."
)


def prepare() -> list[str]:
    """Make ``import detectron2`` work on this machine, touching only what needs it.

    Returns:
        one sentence for each repair made; empty for a Detectron2 that needs none.

    Raises:
        ImportError: Detectron2 is not installed.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "aid_d2 needs Detectron2, which is not installed. Install it from source, or run "
            "`make install` in the aid_d2 repository to get v0.6 without a compiler."
        )
    # By fvcore and Detectron2 as they are imported: nothing that a user could mend.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    root = Path(spec.submodule_search_locations[0])
    repairs = [
        *_restore_numpy_aliases(root),
        *_restore_pillow_constant(root),
        *_replace_extension(),
        *_load_model_zoo(root),  # imports Detectron2, so it comes last
    ]
    REPAIRS.extend(repairs)
    return repairs


def _mentions(root: Path, file: str, pattern: str) -> bool:
    path = root / file
    return path.is_file() and re.search(pattern, path.read_text()) is not None


def _restore_numpy_aliases(root: Path) -> list[str]:
    """`np.bool` and its like, removed in NumPy 1.24 (`np.bool` came back in 2.0)."""
    if not _mentions(root, "structures/masks.py", r"np\.bool\b"):
        return []
    missing = [t for t in (bool, int, float, object) if t.__name__ not in vars(np)]
    for builtin in missing:
        setattr(np, builtin.__name__, builtin)
    names = ", ".join(f"np.{t.__name__}" for t in missing)
    return [f"Detectron2: restored {names}"] if missing else []


def _restore_pillow_constant(root: Path) -> list[str]:
    """`Image.LINEAR`, the old name of `Image.BILINEAR`, removed in Pillow 10."""
    from PIL import Image

    if hasattr(Image, "LINEAR") or not _mentions(
        root, "data/transforms/transform.py", r"Image\.LINEAR"
    ):
        return []
    Image.LINEAR = Image.BILINEAR
    return ["Detectron2: restored PIL.Image.LINEAR"]


def _replace_extension() -> list[str]:
    """A placeholder for `detectron2._C`, and a C++ COCO evaluation from another package."""
    try:
        importlib.import_module("detectron2._C")
        return []
    except ImportError as error:
        reason = str(error)

    detectron2 = importlib.import_module("detectron2")
    placeholder = _Extension("detectron2._C")
    sys.modules[placeholder.__name__] = detectron2._C = placeholder
    for op in ("nms_rotated", "box_iou_rotated"):
        if not hasattr(torch.ops.detectron2, op):
            setattr(torch.ops.detectron2, op, getattr(placeholder, op))

    from faster_coco_eval import COCOeval_faster

    fast_eval = ModuleType("detectron2.evaluation.fast_eval_api")
    fast_eval.COCOeval_opt = COCOeval_faster
    sys.modules[fast_eval.__name__] = fast_eval
    return [
        f"Detectron2: running without detectron2._C ({reason}), "
        "COCO evaluation by faster_coco_eval",
    ]


def _load_model_zoo(root: Path) -> list[str]:
    """v0.6's model zoo asks `pkg_resources`, gone from setuptools 81, for one path.

    The stand-in lives only while the model zoo is imported, so that no other package meets it.
    """
    if (
        not _mentions(root, "model_zoo/model_zoo.py", "import pkg_resources")
        or importlib.util.find_spec("pkg_resources") is not None
        or "detectron2.model_zoo.model_zoo" in sys.modules
    ):
        return []

    def resource_filename(package: str, resource: str) -> str:
        return str(Path(importlib.import_module(package).__file__).parent / resource)

    sys.modules["pkg_resources"] = SimpleNamespace(resource_filename=resource_filename)
    try:
        importlib.import_module("detectron2.model_zoo.model_zoo")
    finally:
        del sys.modules["pkg_resources"]
    return ["Detectron2: loaded the model zoo without pkg_resources"]


class _Extension(ModuleType):
    """Stands for `detectron2._C`: importable, and any operation raises when it is called."""

    # Asked for by `detectron2.utils.collect_env`.
    get_compiler_version = staticmethod(lambda: "none (extension not built)")
    get_cuda_version = staticmethod(lambda: "none (extension not built)")
    has_cuda = staticmethod(lambda: False)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise NotImplementedError(
                f"The Detectron2 operation {name!r} was called, but {_REMEDY}"
            )

        return missing
