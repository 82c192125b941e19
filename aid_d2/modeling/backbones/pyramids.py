"""Feature pyramids that Detectron2 has no builder for."""

import fvcore.nn.weight_init as weight_init
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from .timm_network import build_timm_network


class LastLevelP6P7Linear(nn.Module):
    """p6 from p5 and p7 from p6, both by a stride-2 convolution without ReLU, as GFL has them.

    Args:
        channels: of the pyramid.
    """

    num_levels = 2
    in_feature = "p5"

    def __init__(self, channels: int):
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for layer in (self.p6, self.p7):
            weight_init.c2_xavier_fill(layer)

    def forward(self, p5: Tensor) -> list[Tensor]:
        p6 = self.p6(p5)
        return [p6, self.p7(p6)]


def _fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _gfl_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    return _fpn(cfg, bottom_up, LastLevelP6P7Linear(cfg.MODEL.FPN.OUT_CHANNELS))


def _fcos_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _fpn(cfg, bottom_up, LastLevelP6P7(channels, channels, in_feature="p5"))


@BACKBONE_REGISTRY.register()
def build_gfl_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with p6 and p7 as GFL has them: from p5, without ReLU."""
    return _gfl_fpn(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with p6 and p7 as FCOS has them: from p5, a ReLU between."""
    return _fcos_fpn(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Network of timm and FPN as for Faster R-CNN: p6 by pooling p5."""
    return _fpn(cfg, build_timm_network(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Network of timm and FPN as for RetinaNet: p6 and p7 from res5."""
    bottom_up = build_timm_network(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_gfl_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Network of timm and FPN as for GFL."""
    return _gfl_fpn(cfg, build_timm_network(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fcos_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Network of timm and FPN as for FCOS."""
    return _fcos_fpn(cfg, build_timm_network(cfg, input_shape))
