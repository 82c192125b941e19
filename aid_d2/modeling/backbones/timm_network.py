"""Any convolutional network of timm as a Detectron2 backbone."""

import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone

from ...config import CONFIG_EXTENSIONS
from .checks import warn_pixel_scale

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
NORM_NAMES = ("FrozenBN", "BN", "SyncBN")


def add_timm_config(cfg: CfgNode) -> None:
    """Add the node MODEL.TIMM."""
    cfg.MODEL.TIMM = CfgNode()
    # Network of the backbones build_..._timm_fpn_backbone. How much of it is frozen,
    # MODEL.BACKBONE.FREEZE_AT says.
    cfg.MODEL.TIMM.NAME = "resnet18"
    # What batch norms become: FrozenBN, BN or SyncBN. Other kinds of normalization stay.
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    # Where MODEL.WEIGHTS is empty, start from the ImageNet weights that timm downloads ...
    cfg.MODEL.TIMM.PRETRAINED = False
    # ... or from this file, .safetensors or .pth, that has timm's names.
    cfg.MODEL.TIMM.CHECKPOINT = ""
    # What the config.yaml of a detector may still have.
    cfg.register_deprecated_key("MODEL.MOBILENETV2")


CONFIG_EXTENSIONS.append(add_timm_config)


def _timm() -> ModuleType:
    """Imported when it is needed: it is an optional extra, and takes a second."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Backbones of timm need it: pip install aid_d2[timm]") from error


class TimmNetwork(Backbone):
    """Maps res2 to res5, at strides 4 to 32, of a network of timm.

    Args:
        network: of `timm.create_model(..., features_only=True)`.
        name: of the network, for messages.
        norm: one of NORM_NAMES.
        freeze_at: as for ResNet: k freezes what the map at stride 2^k is computed by, 0 nothing.
            Where there is no map at stride 2, as in ConvNeXt, 1 freezes nothing either.

    Raises:
        ValueError: a map is missing or laid out otherwise, or `norm` is unknown.
    """

    @torch.enable_grad()  # gradients tell what is to be frozen, also where none are wanted
    def __init__(self, network: nn.Module, name: str, norm: str = "FrozenBN", freeze_at: int = 0):
        super().__init__()
        if norm not in NORM_NAMES:
            raise ValueError(f"MODEL.TIMM.NORM is {norm!r}; choose one of {NORM_NAMES}.")
        strides, channels = network.feature_info.reduction(), network.feature_info.channels()
        maps = _maps_of_black_image(network, name, strides)
        # Of several maps of one stride the last is the deepest.
        position = {stride: i for i, stride in enumerate(strides)}
        self._positions = {key: position[stride] for key, stride in STRIDES.items()}
        self._out_features = list(STRIDES)
        self._out_feature_strides = STRIDES
        self._out_feature_channels = {key: channels[i] for key, i in self._positions.items()}
        self.network = network

        # Stride 1, which VGG has, belongs to the stem.
        shallow = [x for x, stride in zip(maps, strides) if freeze_at and stride <= 2**freeze_at]
        frozen = _parameters_before(shallow, network)
        for parameter in frozen:
            parameter.requires_grad = False
        _freeze_norms(network, set(network.parameters()) if norm == "FrozenBN" else frozen)
        if norm == "SyncBN":
            self.network = _timm().layers.convert_sync_batchnorm(network)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps res2 to res5 (N, C, H / stride, W / stride) of images (N, 3, H, W)."""
        maps = self.network(x)
        return {key: maps[i] for key, i in self._positions.items()}


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """A batch norm with constant statistics, and the activation that timm's may carry."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(self, name).copy_(getattr(norm, name).detach())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def build_timm_network(cfg: CfgNode, input_shape: ShapeSpec) -> TimmNetwork:
    """The network that MODEL.TIMM names, with ImageNet weights unless MODEL.WEIGHTS brings others.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm has no such network with maps at strides 4 to 32, or the file of weights
            belongs to another one.
        FileNotFoundError: there is no file MODEL.TIMM.CHECKPOINT.
        OSError: the weights cannot be downloaded.
    """
    node = cfg.MODEL.TIMM
    if cfg.MODEL.WEIGHTS.startswith("detectron2://ImageNetPretrained"):
        raise ValueError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} is for Detectron2's own networks. Set it empty, "
            "and MODEL.TIMM.PRETRAINED or MODEL.TIMM.CHECKPOINT."
        )
    starts = not cfg.MODEL.WEIGHTS
    network = _create(node.NAME, pretrained=starts and node.PRETRAINED and not node.CHECKPOINT)
    if starts and node.CHECKPOINT:
        load_checkpoint(network, node.CHECKPOINT)
    if starts and (node.PRETRAINED or node.CHECKPOINT):
        warn_pixel_scale(cfg, network.pretrained_cfg)
    return TimmNetwork(network, node.NAME, node.NORM, cfg.MODEL.BACKBONE.FREEZE_AT)


def _create(name: str, pretrained: bool) -> nn.Module:
    create_model = _timm().create_model
    try:
        return create_model(name, pretrained=pretrained, features_only=True)
    except RuntimeError as error:  # so timm says that a network is unknown, or has no maps
        raise ValueError(
            f"MODEL.TIMM.NAME {name!r} cannot be built with feature maps: {error}"
        ) from error
    except OSError as error:
        raise OSError(
            f"MODEL.TIMM.PRETRAINED: the weights of {name} cannot be downloaded. Name a file of "
            f"them as MODEL.TIMM.CHECKPOINT; docs/backbones.md says how to make it. {error}"
        ) from error


def load_checkpoint(network: nn.Module, path: str) -> None:
    """Load a file of a whole network's weights into its feature extractor.

    Args:
        network: of `timm.create_model(..., features_only=True)`.
        path: .safetensors or .pth, with the names of `timm.create_model(...)`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a parameter is missing or of another shape.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"MODEL.TIMM.CHECKPOINT: there is no file {path!r}. Make it as docs/backbones.md says."
        )
    # A feature extractor may have stages_0.conv where the whole network has stages.0.conv.
    saved = {key.replace(".", "_"): x for key, x in _timm().models.load_state_dict(path).items()}
    wanted = network.state_dict()
    found = {key: saved.get(key.replace(".", "_")) for key in wanted}
    unfit = [key for key, x in wanted.items() if found[key] is None or found[key].shape != x.shape]
    if unfit:
        raise ValueError(
            f"MODEL.TIMM.CHECKPOINT {path} belongs to another network: {len(unfit)} of "
            f"{len(wanted)} tensors, {unfit[0]} the first, are missing or of another shape."
        )
    network.load_state_dict(found)


def _maps_of_black_image(network: nn.Module, name: str, strides: list[int]) -> list[Tensor]:
    """What the network makes of one, in eval mode, if that can carry a pyramid.

    Raises:
        ValueError: it cannot.
    """
    refused = f"MODEL.TIMM.NAME {name!r} cannot carry a pyramid: "
    remedy = "Choose a convolutional network, such as resnet18."
    if not set(STRIDES.values()) <= set(strides):
        raise ValueError(f"{refused}its maps have the strides {strides}, not 4 to 32. {remedy}")
    if network.pretrained_cfg.get("fixed_input_size"):
        raise ValueError(f"{refused}it takes images of one size alone. {remedy}")
    maps = network.eval()(torch.zeros(1, 3, 128, 128))
    network.train()
    for x, stride, channels in zip(maps, strides, network.feature_info.channels()):
        if x.shape != (1, channels, 128 // stride, 128 // stride):
            raise ValueError(f"{refused}its map at stride {stride} is {tuple(x.shape)}. {remedy}")
    return maps


def _parameters_before(maps: list[Tensor], network: nn.Module) -> set[nn.Parameter]:
    """The parameters that maps depend on, by their gradients."""
    if not maps:
        return set()
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(sum(x.sum() for x in maps), parameters, allow_unused=True)
    return {p for p, gradient in zip(parameters, gradients) if gradient is not None}


def _freeze_norms(module: nn.Module, frozen: set[nn.Parameter]) -> None:
    """Replace the batch norms whose weights are among `frozen`, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and child.weight in frozen:
            module.add_module(name, FrozenBatchNormAct2d(child))
        else:
            _freeze_norms(child, frozen)
