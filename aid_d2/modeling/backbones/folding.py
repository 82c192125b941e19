"""Batch norms folded into the convolutions of a network that was not built for it."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detectron2.layers import FrozenBatchNorm2d

# Batch norms, also frozen ones.
NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


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

    Which do, one image through the network tells. Its outputs change by rounding alone.

    Args:
        network: in eval mode; takes images (N, 3, H, W).
    """
    names = {module: name for name, module in network.named_modules()}
    for norm, convolution in _convolutions_before_norms(network).items():
        fold(convolution, norm)
        # A norm of timm may carry an activation.
        network.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))


@torch.no_grad()
def _convolutions_before_norms(network: nn.Module) -> dict[nn.Module, nn.Conv2d]:
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
    network(next(network.parameters()).new_zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return pairs
