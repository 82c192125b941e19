"""A detector's forward pass made cheap: bfloat16, channels last, compiled, without norms."""

import logging

import torch
from torch import nn

from detectron2.layers import Conv2d

from .backbones import NORMS, TimmNetwork, fold, fold_norms_after_convolutions

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16")


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type that one of PRECISIONS means on a device: `auto` is bfloat16 where it is fast."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    return getattr(torch, precision)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 instead of emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not hasattr(torch.cpu, "get_capabilities"):  # younger than torch 2.6
        return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    capabilities = torch.cpu.get_capabilities()
    # Of Intel and AMD, and of ARM.
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def warn_emulated_bfloat16(device: torch.device) -> None:
    """Warn that training in bfloat16, SOLVER.BF16, makes this device slower."""
    if not has_bfloat16(device):
        logger.warning(
            "SOLVER.BF16 is True, and this device (%s) emulates bfloat16, which can take three "
            "times as long as float32. Set it False, unless memory is short.",
            device.type,
        )


def fold_norms(model: nn.Module) -> None:
    """Fold the batch norms of a detector in eval mode into its convolutions, and order these by
    channels last. Its outputs change by rounding alone, its state dict loses the norms.
    """
    for layer in list(model.modules()):
        # Group norms, and what a head calls level by level, stay as they are.
        if isinstance(layer, Conv2d) and isinstance(layer.norm, NORMS):
            fold(layer, layer.norm)
            layer.norm = None
        elif isinstance(layer, TimmNetwork):
            fold_norms_after_convolutions(layer.network)
    model.requires_grad_(False)
    model.to(memory_format=torch.channels_last)


def compile_backbone(model: nn.Module) -> None:
    """Run the network below the pyramid through `torch.compile`; what cannot be compiled runs as it
    is, and torch's log says so.

    Raises:
        ValueError: the backbone has no `bottom_up` network.
    """
    if not hasattr(model.backbone, "bottom_up"):
        raise ValueError(
            f"SOLVER.COMPILE and DISTILL.TEACHER.COMPILE compile backbone.bottom_up, which the "
            f"{type(model.backbone).__name__} of a {type(model).__name__} does not have. Set them "
            "False."
        )
    torch._dynamo.config.suppress_errors = True
    model.backbone.bottom_up.compile()
