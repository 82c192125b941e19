"""Teachers that are configured by Detectron2's LazyConfig."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
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
    names = OmegaConf.select(cfg, "dataloader.train.dataset.names")
    if names is not None:
        first = names if isinstance(names, str) else names[0]
        names = MetadataCatalog.get(first).get("thing_classes")
    return model.to(device), OmegaConf.select(cfg, "model.input_format") or "BGR", names
