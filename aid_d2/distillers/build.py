"""Distillers from the config."""

from typing import Dict

from detectron2.config import CfgNode

from .base import DISTILLER_REGISTRY, Distiller, Setting



def method_node(cfg: CfgNode, method: str) -> CfgNode:
    """The keys of a method, DISTILL.<name in capitals>."""
    return cfg.DISTILL[method.upper()]


def build_distillers(cfg: CfgNode, setting: Setting) -> Dict[str, Distiller]:
    """The methods of DISTILL.METHODS, by name.

    Raises:
        ValueError: an unknown or repeated name, or none.
    """
    known = [name for name, _ in DISTILLER_REGISTRY]
    unknown = [name for name in cfg.DISTILL.METHODS if name not in known]
    repeated = len(set(cfg.DISTILL.METHODS)) < len(cfg.DISTILL.METHODS)
    if unknown or repeated or not cfg.DISTILL.METHODS:
        raise ValueError(
            f"DISTILL.METHODS is {list(cfg.DISTILL.METHODS)}; name methods of {known}, each once. To "
            "train the student alone set DISTILL.ENABLED False."
        )
    return {
        name: DISTILLER_REGISTRY.get(name)(method_node(cfg, name), setting)
        for name in cfg.DISTILL.METHODS
    }
