"""What is likely wrong with the config of a backbone, told as warnings."""

import logging

import numpy as np

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def warn_frozen_random(cfg: CfgNode) -> None:
    """Warn of layers that would stay as random as they start, for lack of weights."""
    is_timm = "timm" in cfg.MODEL.BACKBONE.NAME
    node = cfg.MODEL.TIMM if is_timm else cfg.MODEL.RESNETS
    if cfg.MODEL.WEIGHTS or (is_timm and (node.PRETRAINED or node.CHECKPOINT)):
        return
    name = "MODEL.TIMM" if is_timm else "MODEL.RESNETS"
    remedies = []
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        remedies.append("MODEL.BACKBONE.FREEZE_AT 0")
    if node.NORM == "FrozenBN":
        remedies.append(f"{name}.NORM BN")
    if remedies:
        weights = "MODEL.TIMM.CHECKPOINT" if is_timm else "MODEL.WEIGHTS"
        logger.warning(
            "MODEL.WEIGHTS is empty, so the backbone starts at random, and some of its layers are "
            f"frozen: they never learn. Set {' and '.join(remedies)}, or give ImageNet weights by "
            f"{weights}."
        )


def warn_pixel_scale(cfg: CfgNode, pretrained_cfg: dict) -> None:
    """Warn of images that are scaled otherwise than those the ImageNet weights were trained on.

    Args:
        pretrained_cfg: timm's; its `mean` and `std` are RGB, for pixels from 0 to 1.
    """
    mean, std = ([round(255 * x, 3) for x in pretrained_cfg[key]] for key in ("mean", "std"))
    same = all(
        # One step of 255 makes no difference, and authors round differently.
        np.allclose(found, wanted, rtol=0, atol=1)
        for found, wanted in ((cfg.MODEL.PIXEL_MEAN, mean), (cfg.MODEL.PIXEL_STD, std))
    )
    if not same or cfg.INPUT.FORMAT != "RGB":
        logger.warning(
            f"The weights of MODEL.TIMM.NAME {cfg.MODEL.TIMM.NAME} were trained on images scaled "
            f"otherwise. Add to the config:\nMODEL: {{PIXEL_MEAN: {mean}, PIXEL_STD: {std}}}\n"
            "INPUT: {FORMAT: RGB}"
        )
