"""A `CfgNode` that takes integers for floats, and explains what is wrong with a key."""

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode as CN

from .suggestions import did_you_mean


class Config(CN):
    """A `CfgNode` whose float keys take integers too: yacs alone refuses them."""

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
