"""A `CfgNode` that takes integers for floats, finds aid_d2's configs, and explains a wrong key."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.config import CfgNode as CN
from detectron2.utils.file_io import PathManager

from .suggestions import did_you_mean


def get_config_file(name: str) -> str:
    """The path of a config that aid_d2 comes with, such as `kitti/gfl_R_50_aid.yaml`."""
    return os.path.join(os.path.dirname(__file__), "configs", name)


class Config(CN):
    """A `CfgNode` whose float keys take integers too: yacs alone refuses them.

    A `_BASE_` that is not there is looked for by its name among the configs of aid_d2.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        """
        Raises:
            FileNotFoundError: there is no such file, nor one of its name in aid_d2.
            ValueError: it has something else than keys, or a `_BASE_` that is no path or does not
                fit.
        """
        try:
            values = super().load_yaml_with_base(_find(filename), allow_unsafe)
            values.keys()
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"{filename} is no config: it has to consist of `KEY: value`, and a _BASE_ is the "
                "path of a file or a list of paths."
            ) from error
        except AssertionError as error:
            raise ValueError(f"{filename}: {error}") from error
        return values

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True):
        try:
            return super().merge_from_file(cfg_filename, allow_unsafe)
        except TypeError as error:  # Where Detectron2 guesses the VERSION.
            raise ValueError(
                f"{cfg_filename}: a value is not the node of keys it is to be."
            ) from error

    def merge_from_other_cfg(self, cfg_other):
        with _explained(self):
            return super().merge_from_other_cfg(_with_floats(cfg_other, self))

    def merge_from_list(self, cfg_list):
        result = list(cfg_list)
        for i, key in enumerate(cfg_list[:-1:2]):
            value = self
            for name in key.split("."):
                value = value.get(name) if isinstance(value, CN) else None
            result[2 * i + 1] = _as_typed(cfg_list[2 * i + 1], value)
        with _explained(self):
            return super().merge_from_list(result)


def _find(filename: str) -> str:
    """The file, or aid_d2's config whose path ends in the same way."""
    if PathManager.isfile(filename):
        return filename
    parts = Path(filename).parts
    for name in (os.path.join(*parts[-2:]), parts[-1]):
        if os.path.isfile(get_config_file(name)):
            return get_config_file(name)
    raise FileNotFoundError(
        f"There is no config file {filename}, nor one of this name among those of aid_d2."
    )


@contextmanager
def _explained(cfg: CN) -> Iterator[None]:
    """What yacs says of a wrong key or value, as a ValueError with the key that may be meant."""
    try:
        yield
    except (AssertionError, KeyError) as error:
        message = str(error.args[0])
        _, unknown, key = message.rpartition("key: ")
        hint = did_you_mean(key, _keys(cfg)) if unknown else ""
        raise ValueError(f"{message}.{hint}") from error


def _keys(cfg: CN, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CN):
            yield from _keys(value, f"{prefix}{key}.")


def _with_floats(values: CN, defaults: CN) -> CN:
    """A copy of the values, with floats where the defaults have them."""
    result = CN()
    for key, value in values.items():
        default = defaults.get(key)
        is_node = isinstance(value, CN) and isinstance(default, CN)
        result[key] = _with_floats(value, default) if is_node else _as_typed(value, default)
    return result


def _as_typed(value, default):
    """The value; an integer, also as text of the command line, as a float like the default."""
    is_integer = str(value).lstrip("+-").isdecimal()
    return float(value) if is_integer and isinstance(default, float) else value
