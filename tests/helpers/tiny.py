"""The small GFL and FCOS detectors of the tests."""

from pathlib import Path

import torch

from aid_d2 import add_aid_config
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

CONFIGS = Path(__file__).parents[2] / "configs"
K = 3


def dense_cfg(name, num_convs):
    """R18, 32 channels and K classes on the Base config of a dense detector."""
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"Base-{name}.yaml"))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL[name].NUM_CONVS = num_convs
    cfg.MODEL[name].NUM_CLASSES = K
    return cfg


def instances(boxes, classes, size=(96, 96)):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.as_tensor(classes).long())
