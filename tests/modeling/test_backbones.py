"""Feature pyramids for the detectors, and networks of timm below them."""

import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from aid_d2.modeling.backbones import (
    LastLevelP6P7Linear,
    TimmNetwork,
    build_timm_network,
    fold_norms_after_convolutions,
    warn_frozen_random,
)
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone

# Of each family the smallest; ConvNeXt has no map at stride 2, and no batch norm.
NETWORKS = [
    "resnet18",
    "mobilenetv3_small_050",
    "tf_efficientnet_lite0",
    "regnety_002",
    "convnext_atto",
]
BUILDERS = {
    "RetinaNet": "build_retinanet_timm_fpn_backbone",
    "GFL": "build_gfl_timm_fpn_backbone",
    "FCOS": "build_fcos_timm_fpn_backbone",
    "FasterRCNN": "build_timm_fpn_backbone",
}
RESNET_BUILDERS = {
    "GFL": "build_gfl_resnet_fpn_backbone",
    "FCOS": "build_fcos_resnet_fpn_backbone",
}
IMAGENET = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
}


def timm_changes(detector, network, **changes):
    return {
        "MODEL.BACKBONE.NAME": BUILDERS[detector],
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.TIMM.NAME": network,
        **{f"MODEL.TIMM.{key}": value for key, value in changes.items()},
    }


def random_network(name, seed=0):
    """A whole network of timm whose batch norms have seen data."""
    torch.manual_seed(seed)
    network = timm.create_model(name).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """By name of a network, a file as timm's users write it."""
    folder = tmp_path_factory.mktemp("imagenet")
    files = {}
    for i, name in enumerate(NETWORKS):
        weights = random_network(name).state_dict()
        files[name] = str(folder / f"{name}.{'pth' if i % 2 else 'safetensors'}")
        torch.save(weights, files[name]) if i % 2 else save_file(weights, files[name])
    return files


@pytest.mark.parametrize("detector", BUILDERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_serves_every_detector(
    network, detector, checkpoints, distilled_cfg, build_seeded, make_batch, storage
):
    changes = timm_changes(detector, network, NORM="BN", CHECKPOINT=checkpoints[network])
    model = build_seeded(distilled_cfg(detector, changes), 0)
    backbone = model.student.backbone
    first, last = ("p2", "p6") if detector == "FasterRCNN" else ("p3", "p7")
    assert [list(backbone.output_shape())[i] for i in (0, -1)] == [first, last]

    images = torch.randn(2, 3, 64, 96)
    whole = timm.create_model(network, checkpoint_path=checkpoints[network])
    reference = timm.create_model(network, features_only=True, out_indices=(-4, -3, -2, -1))
    names = {key.replace(".", "_"): x for key, x in whole.state_dict().items()}
    reference.load_state_dict({key: names[key.replace(".", "_")] for key in reference.state_dict()})
    with torch.no_grad():
        maps = backbone.bottom_up.eval()(images)
        for x, expected in zip(maps.values(), reference.eval()(images)):
            torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)

    losses = model.train()(make_batch(counts=(2, 1), size=(64, 64)))
    assert any(key.startswith("loss_AttentionGuided") for key in losses)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("detector", BUILDERS)
def test_maps_are_as_announced(detector, small_cfg):
    for builder in {BUILDERS[detector], RESNET_BUILDERS.get(detector, BUILDERS[detector])}:
        cfg = small_cfg(detector, {"MODEL.BACKBONE.NAME": builder})
        backbone = build_backbone(cfg)
        maps = backbone(torch.zeros(1, 3, 64, 96))
        for name, shape in backbone.output_shape().items():
            assert shape.stride == 2 ** int(name[1:])
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


@pytest.mark.parametrize("detector, below", [("GFL", "p5"), ("FCOS", "p5"), ("RetinaNet", "res5")])
def test_where_p6_comes_from(detector, below, small_cfg):
    backbone = build_backbone(small_cfg(detector, timm_changes(detector, "resnet18"))).eval()
    images = torch.rand(1, 3, 64, 64)
    maps = {**backbone.bottom_up(images), **backbone(images)}
    top = backbone.top_block.p6
    torch.testing.assert_close(F.conv2d(maps[below], top.weight, top.bias, 2, 1), maps["p6"])


@pytest.mark.parametrize(
    "freeze_at, frozen",
    [
        (0, ()),
        (1, ("conv_stem", "bn1", "blocks.0")),
        (3, ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")),
    ],
)
def test_freezes_the_first_stages(freeze_at, frozen):
    network = timm.create_model("tf_efficientnet_lite0", features_only=True)
    network = TimmNetwork(network, "tf_efficientnet_lite0", "BN", freeze_at).train()
    before = {name: x.clone() for name, x in network.network.state_dict().items()}
    sum(x.sum() for x in network(torch.randn(2, 3, 64, 64)).values()).backward()
    for name, parameter in network.network.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen)
    for name, x in network.network.state_dict().items():
        if "running" in name:
            assert torch.equal(x, before[name]) == name.startswith(frozen), name


def test_without_a_map_at_stride_2_there_is_no_stem_to_freeze():
    for freeze_at, some in ((1, False), (2, True)):
        network = timm.create_model("convnext_atto", features_only=True)
        network = TimmNetwork(network, "convnext_atto", freeze_at=freeze_at)
        assert some != all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "regnety_002"])
def test_frozen_norms_compute_what_norms_in_eval_mode_do(name):
    features = timm.create_model(name, features_only=True)
    whole = random_network(name).state_dict()
    features.load_state_dict({key: whole[key] for key in features.state_dict()})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = features.eval()(images)[1:]
        network = TimmNetwork(features, name, "FrozenBN").train()
        for x, y in zip(network(images).values(), expected):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * y.abs().max().item())
    assert not any(isinstance(x, nn.BatchNorm2d) for x in network.modules())


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "regnety_002", "repvgg_a0"])
def test_norms_are_folded(name, norm):
    features = timm.create_model(name, features_only=True)
    whole = random_network(name).state_dict()
    saved = {key.replace(".", "_"): x for key, x in whole.items()}
    features.load_state_dict({key: saved[key.replace(".", "_")] for key in features.state_dict()})
    network = TimmNetwork(features, name, norm).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        fold_norms_after_convolutions(network.network)
        for key, x in network(images).items():
            y = expected[key]
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4 * y.abs().max().item())
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d)
    left = sum(isinstance(x, kinds) for x in network.modules())
    # RepVGG also has norms of what is no convolution's output.
    assert left == 0 if name != "repvgg_a0" else left > 0


class BothSides(nn.Module):
    """Gives out a convolution's output, and what a norm makes of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_var.fill_(9.0)

    def forward(self, x):
        before = self.conv(x)
        return [before, self.norm(before)]


def test_norms_stay_whose_input_is_used_elsewhere():
    network, images = BothSides().eval(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = network(images)
        fold_norms_after_convolutions(network)
        assert all(map(torch.equal, network(images), expected))


def test_sync_norms_keep_their_activations():
    features = timm.create_model("tf_efficientnet_lite0", features_only=True)
    acts = sum(isinstance(x, nn.ReLU6) for x in features.modules())
    network = TimmNetwork(features, "tf_efficientnet_lite0", "SyncBN", freeze_at=2)
    norms = [x for x in network.modules() if isinstance(x, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    assert norms and all(isinstance(x, nn.SyncBatchNorm) for x in norms)
    assert any(isinstance(x, FrozenBatchNorm2d) for x in network.modules())
    assert sum(isinstance(x, nn.ReLU6) for x in network.modules()) == acts > 0


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_trains_in_bfloat16_and_channels_last(norm, small_cfg, build_seeded, make_batch, storage):
    cfg = small_cfg("GFL", timm_changes("GFL", "mobilenetv3_small_050", NORM=norm))
    model = build_seeded(cfg, 0).to(memory_format=torch.channels_last)
    # On smaller images p6 is 1x1, and there oneDNN leaves the weights' gradient of a bfloat16
    # convolution with stride 2 uninitialized.
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(make_batch(size=(128, 128)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    "name, reason",
    [
        ("vit_tiny_patch16_224", "have the strides .16, 16, 16."),
        ("swin_tiny_patch4_window7_224", "images of one size"),
        ("inception_v3", r"at stride 2 is \(1, 64, 61, 61\)"),
        ("no_such_network", "Unknown model"),
    ],
)
def test_networks_that_cannot_carry_a_pyramid(name, reason, small_cfg):
    cfg = small_cfg("GFL", timm_changes("GFL", name))
    with pytest.raises(ValueError, match=f"MODEL.TIMM.NAME '{name}'.*{reason}"):
        build_backbone(cfg)


def test_weights_that_cannot_be_downloaded(monkeypatch, small_cfg):
    def create_model(name, pretrained, features_only):
        raise FileNotFoundError("Cannot find the file on the Hub")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(OSError, match=r"weights of resnet18 .*MODEL.TIMM.CHECKPOINT.*on the Hub"):
        build_backbone(small_cfg("GFL", timm_changes("GFL", "resnet18", PRETRAINED=True)))


def test_without_timm(monkeypatch, small_cfg):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install aid_d2\[timm\]"):
        build_backbone(small_cfg("GFL", timm_changes("GFL", "resnet18")))


def test_checkpoint_that_does_not_fit(checkpoints, small_cfg):
    changes = timm_changes("GFL", "resnet18", CHECKPOINT=checkpoints["regnety_002"])
    with pytest.raises(ValueError, match="regnety_002.pth belongs to another network"):
        build_backbone(small_cfg("GFL", changes))
    changes = timm_changes("GFL", "resnet18", CHECKPOINT="no/such.pth")
    with pytest.raises(FileNotFoundError, match="MODEL.TIMM.CHECKPOINT: there is no file"):
        build_backbone(small_cfg("GFL", changes))
    # A trained detector needs neither file nor download.
    build_backbone(small_cfg("GFL", {**changes, "MODEL.WEIGHTS": "output/model_final.pth"}))


def test_weights_of_another_network_and_unknown_norm(small_cfg):
    changes = timm_changes("GFL", "resnet18")
    zoo = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl"}
    with pytest.raises(ValueError, match="MODEL.WEIGHTS .*R-50.pkl is for Detectron2's own"):
        build_backbone(small_cfg("GFL", {**changes, **zoo}))
    with pytest.raises(ValueError, match="MODEL.TIMM.NORM is 'GN'"):
        build_backbone(small_cfg("GFL", {**changes, "MODEL.TIMM.NORM": "GN"}))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({}, True),
        (IMAGENET, False),
        ({**IMAGENET, "INPUT.FORMAT": "BGR"}, True),
        ({**IMAGENET, "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}, True),
    ],
)
def test_images_scaled_otherwise(changes, told, checkpoints, small_cfg, caplog):
    weights = timm_changes("GFL", "resnet18", CHECKPOINT=checkpoints["resnet18"])
    build_timm_network(small_cfg("GFL", {**weights, **changes}), None)
    lines = (
        "MODEL: {PIXEL_MEAN: [123.675, 116.28, 103.53], PIXEL_STD: [58.395, 57.12, 57.375]}\n"
        "INPUT: {FORMAT: RGB}"
    )
    assert (lines in caplog.text) == told
    assert told or not caplog.records


@pytest.mark.parametrize(
    "changes, remedy",
    [
        (
            {"MODEL.BACKBONE.FREEZE_AT": 2},
            "Set MODEL.BACKBONE.FREEZE_AT 0 and MODEL.RESNETS.NORM BN",
        ),
        ({"MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.NORM": "BN"}, None),
        ({"MODEL.WEIGHTS": "model.pth"}, None),
        (timm_changes("GFL", "resnet18"), "Set MODEL.TIMM.NORM BN"),
        (timm_changes("GFL", "resnet18", PRETRAINED=True), None),
    ],
)
def test_layers_frozen_at_random(changes, remedy, small_cfg, caplog):
    warn_frozen_random(small_cfg("GFL", changes))
    assert [remedy in record.message for record in caplog.records] == [True] * bool(remedy)


@pytest.mark.parametrize("detector", BUILDERS)
def test_scratch_configs_freeze_nothing(detector, small_cfg, build_seeded, caplog):
    cfg = small_cfg(detector)
    cfg.merge_from_file(f"configs/Base-{detector}-scratch.yaml")
    warn_frozen_random(cfg)
    assert not caplog.records
    model = build_seeded(cfg, 0)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(x, FrozenBatchNorm2d) for x in model.modules())
    assert cfg.TEST.EVAL_PERIOD > 0


def test_config_of_a_detector_from_before_timm(tmp_path, small_cfg):
    (tmp_path / "config.yaml").write_text("MODEL: {MOBILENETV2: {NORM: BN}}")
    small_cfg("GFL").merge_from_file(str(tmp_path / "config.yaml"))
