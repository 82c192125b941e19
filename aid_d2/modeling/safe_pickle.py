"""Pickled weights of strangers, which could run any code, are read as arrays and containers."""

import os
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
from torch import Tensor

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

# The environment variable with which torch.load reads anything; --trust-checkpoint sets it.
TRUST = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

# What a pickle of arrays in plain containers names, in NumPy 1 and 2 and in Python 2.
ADMITTED = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
}


class ArrayUnpickler(pickle.Unpickler):
    """Refuses to import anything but ADMITTED.

    Raises:
        pickle.UnpicklingError: the file asks for something else, which is named.
    """

    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


class SafeCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` whose files hold tensors, arrays and plain containers alone.

    torch reads `.pth` files like that by itself.

    Raises:
        ValueError: on loading, a file wants more, unless the environment says TRUST.
        OSError: it cannot be downloaded.
    """

    def load(self, path, *args, **kwargs):
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except URLError as error:
            raise OSError(
                f"{path} cannot be downloaded: {error.reason}. Fetch the file on another machine "
                "and name it instead; docs/backbones.md has weights that come as packages."
            ) from error

    def _load_file(self, filename):
        try:
            if filename.endswith(".pkl") and os.environ.get(TRUST) != "1":
                with PathManager.open(filename, "rb") as f:
                    ArrayUnpickler(f, encoding="latin1").load()
            checkpoint = super()._load_file(filename)
            model = checkpoint["model"]
            if not model or not all(isinstance(x, (Tensor, np.ndarray)) for x in model.values()):
                raise ValueError("Under `model` is something else than tensors, or nothing.")
            return checkpoint
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL (\S+)", str(error))
            if wanted is None:
                raise ValueError(_broken(filename)) from error
            raise ValueError(
                f"{filename} asks for {wanted[1]}, which could run code of its author. Use a file "
                "of weights alone or, if you trust the author, --trust-checkpoint."
            ) from error
        except Exception as error:  # What a broken pickle ends in is anything.
            raise ValueError(_broken(filename)) from error


def _broken(filename: str) -> str:
    others = sorted(x for x in Path(filename).parent.glob("*.pth") if x != Path(filename))
    hint = f" Its folder also holds {others[-1].name}." if others else ""
    return f"{filename} is broken, or no checkpoint.{hint}"
