"""tools/convert_torchvision.py: the detector's backbone computes what torchvision's does."""

import pytest
import torch
import torchvision
from torch import nn

from aid_d2 import add_aid_config
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone


def backbone_for(network):
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.BACKBONE.NAME = "build_gfl_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    if network == "resnet18":
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    elif network == "resnext101_32x8d":
        cfg.MODEL.RESNETS.DEPTH = 101
        cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32, 8
    return build_backbone(cfg).eval()


def random_network(name):
    torch.manual_seed(0)
    network = torchvision.models.get_model(name).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    return network


def last_map(network, image):
    without_classifier = nn.Sequential(*list(network.children())[:-2])
    return without_classifier(image)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101_32x8d"])
def test_backbone_computes_the_same(load_tool, monkeypatch, tmp_path, name):
    network = random_network(name)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    output = tmp_path / "new" / "weights.pkl"
    tool = load_tool("convert_torchvision")
    arguments = [name, str(output), "--weights", str(tmp_path / "weights.pth")]
    monkeypatch.setattr("sys.argv", ["convert_torchvision.py", *arguments])
    tool.main()
    backbone = backbone_for(name)
    DetectionCheckpointer(backbone).load(str(output))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = last_map(network, image)
        actual = backbone.bottom_up(image)["res5"]
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    with pytest.raises(FileExistsError, match="exists already"):
        tool.main()


def test_file_of_another_network(load_tool, monkeypatch, tmp_path):
    torch.save(random_network("resnet18").state_dict(), tmp_path / "weights.pth")
    tool = load_tool("convert_torchvision")
    arguments = ["resnet50", str(tmp_path / "x.pkl"), "--weights", str(tmp_path / "weights.pth")]
    monkeypatch.setattr("sys.argv", ["convert_torchvision.py", *arguments])
    with pytest.raises(ValueError, match="is no state dict of a resnet50"):
        tool.main()
    monkeypatch.setattr("sys.argv", ["convert_torchvision.py", "resnet50", "x.pth"])
    with pytest.raises(ValueError, match="has to end in .pkl"):
        tool.main()
