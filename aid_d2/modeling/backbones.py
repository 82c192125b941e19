"""Feature pyramids that Detectron2 has no builder for."""

import fvcore.nn.weight_init as weight_init
import torchvision
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from ..config import CONFIG_EXTENSIONS

# The last block of each stage in torchvision's `MobileNetV2.features`, plus one; they end at
# strides 2 (stem), 4, 8, 16 and 32. The final 1x1 convolution serves classification alone.
_MOBILENET_STAGES = {"stem": 1, "res2": 4, "res3": 7, "res4": 14, "res5": 18}


def add_backbone_config(cfg: CfgNode) -> None:
    """Add the node MODEL.MOBILENETV2."""
    cfg.MODEL.MOBILENETV2 = CfgNode()
    # Normalization: FrozenBN, BN or SyncBN. How much is frozen, MODEL.BACKBONE.FREEZE_AT says.
    cfg.MODEL.MOBILENETV2.NORM = "FrozenBN"


CONFIG_EXTENSIONS.append(add_backbone_config)


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


class MobileNetV2(Backbone):
    """MobileNetV2 (Sandler et al., CVPR 2018) of torchvision, under its parameter names.

    `tools/convert_torchvision.py` makes its ImageNet file one that Detectron2 loads.

    Args:
        norm: as for :func:`detectron2.layers.get_norm`.
        freeze_at: as for ResNet: 0 nothing, 1 the stem, 2 stem and res2, ... 5 all.
    """

    def __init__(self, norm: str = "FrozenBN", freeze_at: int = 0):
        super().__init__()
        network = torchvision.models.mobilenet_v2(
            weights=None, norm_layer=lambda channels: get_norm(norm, channels)
        )
        self.features = network.features[: _MOBILENET_STAGES["res5"]]
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_strides = dict(zip(self._out_features, (4, 8, 16, 32)))
        self._out_feature_channels = {
            name: self.features[_MOBILENET_STAGES[name] - 1].out_channels
            for name in self._out_features
        }
        stages = list(_MOBILENET_STAGES.values())
        for block in self.features[: stages[freeze_at - 1] if freeze_at else 0]:
            # Without this the statistics of BN would still move.
            FrozenBatchNorm2d.convert_frozen_batchnorm(block).requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps res2 to res5, at strides 4 to 32, of images (N, 3, H, W)."""
        outputs, start = {}, 0
        for name, stop in _MOBILENET_STAGES.items():
            x = self.features[start:stop](x)
            start = stop
            outputs[name] = x
        return {name: outputs[name] for name in self._out_features}


def _fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _mobilenet(cfg: CfgNode) -> MobileNetV2:
    return MobileNetV2(cfg.MODEL.MOBILENETV2.NORM, cfg.MODEL.BACKBONE.FREEZE_AT)


def _p6_p7_of_p5(cfg: CfgNode) -> LastLevelP6P7:
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return LastLevelP6P7(channels, channels, in_feature="p5")


@BACKBONE_REGISTRY.register()
def build_gfl_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with p6 and p7 as GFL has them: from p5, without ReLU."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    return _fpn(cfg, bottom_up, LastLevelP6P7Linear(cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with p6 and p7 as FCOS has them: from p5, a ReLU between."""
    return _fpn(cfg, build_resnet_backbone(cfg, input_shape), _p6_p7_of_p5(cfg))


@BACKBONE_REGISTRY.register()
def build_mobilenetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV2 and FPN as for Faster R-CNN: p6 by pooling p5."""
    return _fpn(cfg, _mobilenet(cfg), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_mobilenetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV2 and FPN as for RetinaNet: p6 and p7 from res5."""
    bottom_up = _mobilenet(cfg)
    channels = bottom_up.output_shape()["res5"].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_gfl_mobilenetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV2 and FPN as for GFL."""
    return _fpn(cfg, _mobilenet(cfg), LastLevelP6P7Linear(cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_fcos_mobilenetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV2 and FPN as for FCOS."""
    return _fpn(cfg, _mobilenet(cfg), _p6_p7_of_p5(cfg))
