"""Feature pyramids for the detectors, and MobileNetV2."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aid_d2 import add_aid_config
from aid_d2.modeling.backbones import LastLevelP6P7Linear, MobileNetV2
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model

DENSE_BUILDERS = [
    f"build_{prefix}{network}_fpn_backbone"
    for network in ("resnet", "mobilenetv2")
    for prefix in ("gfl_", "fcos_")
] + ["build_retinanet_mobilenetv2_fpn_backbone"]


def small_cfg(builder, in_features=("res3", "res4", "res5")):
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = list(in_features)
    cfg.MODEL.FPN.IN_FEATURES = list(in_features)
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


@pytest.mark.parametrize("builder", DENSE_BUILDERS)
def test_maps_are_as_announced(builder):
    backbone = build_backbone(small_cfg(builder))
    shapes = backbone.output_shape()
    assert list(shapes) == ["p3", "p4", "p5", "p6", "p7"]
    maps = backbone(torch.zeros(1, 3, 64, 96))
    for name, shape in shapes.items():
        size = (-(-64 // shape.stride), -(-96 // shape.stride))
        assert maps[name].shape == (1, shape.channels, *size)
    assert backbone.size_divisibility == 32


def test_gfl_has_no_relu_before_p7():
    block = LastLevelP6P7Linear(4)
    p5 = torch.randn(1, 4, 8, 8)
    p6, p7 = block(p5)
    convolve = [lambda x, c=c: F.conv2d(x, c.weight, c.bias, 2, 1) for c in (block.p6, block.p7)]
    torch.testing.assert_close(p6, convolve[0](p5))
    torch.testing.assert_close(p7, convolve[1](p6))
    assert (p6 < 0).any()


def test_p6_comes_from_p5():
    for builder in ("build_gfl_resnet_fpn_backbone", "build_fcos_resnet_fpn_backbone"):
        backbone = build_backbone(small_cfg(builder))
        maps = backbone(torch.rand(1, 3, 64, 64))
        p6, _ = backbone.top_block(maps["p5"])
        torch.testing.assert_close(p6, maps["p6"])


def test_mobilenet_stages():
    network = MobileNetV2()
    maps = network(torch.zeros(1, 3, 64, 64))
    channels = {name: shape.channels for name, shape in network.output_shape().items()}
    assert channels == {"res2": 24, "res3": 32, "res4": 96, "res5": 320}
    for name, shape in network.output_shape().items():
        assert maps[name].shape == (1, shape.channels, 64 // shape.stride, 64 // shape.stride)


@pytest.mark.parametrize("freeze_at, first_trained", [(0, 0), (1, 1), (2, 4), (5, 18)])
def test_mobilenet_freezes_the_first_stages(freeze_at, first_trained):
    network = MobileNetV2(norm="BN", freeze_at=freeze_at)
    for i, block in enumerate(network.features):
        trained = [p.requires_grad for p in block.parameters()]
        norms = [isinstance(x, nn.BatchNorm2d) for x in block.modules()]
        assert all(trained) if i >= first_trained else not any(trained)
        assert any(norms) == (i >= first_trained)


@pytest.mark.parametrize(
    "detector, builder, in_features",
    [
        ("RetinaNet", "build_retinanet_mobilenetv2_fpn_backbone", ("res3", "res4", "res5")),
        ("GFL", "build_gfl_mobilenetv2_fpn_backbone", ("res3", "res4", "res5")),
        ("FCOS", "build_fcos_mobilenetv2_fpn_backbone", ("res3", "res4", "res5")),
        ("GeneralizedRCNN", "build_mobilenetv2_fpn_backbone", ("res2", "res3", "res4", "res5")),
    ],
)
def test_mobilenet_serves_every_detector(detector, builder, in_features):
    cfg = small_cfg(builder, in_features)
    if detector == "GeneralizedRCNN":
        cfg.merge_from_file("configs/Base-FasterRCNN.yaml")
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.META_ARCHITECTURE = detector
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    model = build_model(cfg).eval()
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 64, 64)}])
    assert "instances" in result
