"""Teachers that are configured by Detectron2's LazyConfig."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog


def is_lazy(path: str) -> bool:
    """Whether a file is a LazyConfig: Python, or the yaml that LazyConfig saves."""
    return path.endswith(".py") or "_target_:" in Path(path).read_text()


def build_lazy(path: str, device: str) -> tuple[nn.Module, str, Sequence[str] | None]:
    """The `model` of a LazyConfig file, which runs the code in it.

    Returns:
        the detector without its weights; its channel order, BGR where the file does not say; and
        the classes of the data set that it was trained on, None where they are not known.

    Raises:
        ValueError: the file has no `model`.
    """
    cfg = LazyConfig.load(path)
    if "model" not in cfg:
        raise ValueError(f"DISTILL.TEACHER.CONFIG_FILE {path} is a LazyConfig without `model`.")
    model = instantiate(cfg.model)
    names = _get(cfg, "dataloader.train.dataset.names")
    if names is not None:
        first = names if isinstance(names, str) else names[0]
        names = MetadataCatalog.get(first).get("thing_classes")
    return model.to(device), _get(cfg, "model.input_format") or "BGR", names


def _get(cfg: DictConfig, path: str):
    """The value at keys joined by dots, None where one of them is missing."""
    for key in path.split("."):
        if not hasattr(cfg, "get") or cfg.get(key) is None:
            return None
        cfg = cfg.get(key)
    return cfg
