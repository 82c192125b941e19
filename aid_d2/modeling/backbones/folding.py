"""Batch norms folded into the convolutions of a network that was not built for it."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detectron2.layers import FrozenBatchNorm2d

# Batch norms, also frozen ones.
NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)

# Of the norm of a map; a norm that is missing changes maps by far more.
_ROUNDING = 1e-2


def fold(convolution: nn.Module, norm: nn.Module) -> None:
    """Fold one of NORMS, in eval mode, into the convolution before it."""
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


def fold_norms_after_convolutions(network: nn.Module) -> None:
    """Fold each batch norm that takes a convolution's output into this convolution, in place.

    Which do, an image of noise through the network tells. Its outputs change by rounding alone: a
    network that uses what comes before a norm elsewhere too keeps its norms.

    Args:
        network: in eval mode; takes images (N, 3, H, W), and gives maps.
    """
    names = {module: name for name, module in network.named_modules()}
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = noise.to(next(network.parameters()))
    pairs, before = _convolutions_before_norms(network, noise)
    unfolded = {conv: (conv.weight, conv.bias) for conv in pairs.values()}
    for norm, convolution in pairs.items():
        fold(convolution, norm)
        # A norm of timm may carry an activation.
        network.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
    with torch.no_grad():
        after = network(noise)
    if all((x - y).norm() <= _ROUNDING * x.norm() for x, y in zip(before, after)):
        return
    for norm, convolution in pairs.items():
        convolution.weight, convolution.bias = unfolded[convolution]
        network.set_submodule(names[norm], norm)


@torch.no_grad()
def _convolutions_before_norms(
    network: nn.Module, images: Tensor
) -> tuple[dict[nn.Module, nn.Conv2d], list[Tensor]]:
    """The convolution before each norm that has one, and the maps."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    pairs = {}

    def remember(convolution, inputs, output):
        outputs.append((convolution, output))

    def look_up(norm, inputs):
        for convolution, output in outputs:
            if output is inputs[0]:
                pairs[norm] = convolution

    hooks = [
        module.register_forward_pre_hook(look_up)
        if isinstance(module, NORMS)
        else module.register_forward_hook(remember)
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, *NORMS))
    ]
    maps = network(images)
    for hook in hooks:
        hook.remove()
    return pairs, maps
