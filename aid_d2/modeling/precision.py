"""A detector's forward pass made cheap: bfloat16, channels last, compiled, without norms."""

import logging

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d

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
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # younger than torch 2.4
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def speed_up(model: nn.Module) -> None:
    """Fold the batch norms of a detector in eval mode into its convolutions, and order these by
    channels last. Its outputs change by rounding alone, its state dict loses the norms.
    """
    for layer in model.modules():
        # Group norms, and what a head calls level by level, stay as they are.
        if isinstance(layer, Conv2d) and isinstance(
            layer.norm, (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)
        ):
            norm = layer.norm
            layer.weight, layer.bias = fuse_conv_bn_weights(
                layer.weight,
                layer.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            layer.norm = None
    model.requires_grad_(False)
    model.to(memory_format=torch.channels_last)


def train_fast(cfg: CfgNode, model: nn.Module) -> None:
    """Apply SOLVER.CHANNELS_LAST, COMPILE and BF16 to a detector or a DistilledDetector."""
    if cfg.SOLVER.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    if cfg.SOLVER.COMPILE:
        compile_backbone(getattr(model, "student", model))
    if cfg.SOLVER.BF16:
        train_in_bfloat16(model)


def compile_backbone(model: nn.Module) -> None:
    """Run the backbone through `torch.compile`; where its forward pass fails, say so and go on
    without.
    """
    backbone = model.backbone
    plain = backbone.forward
    compiled = torch.compile(plain)

    def forward(images: Tensor):
        try:
            return compiled(images)
        except torch.cuda.OutOfMemoryError:
            raise
        # Whatever compilers and drivers raise: if the fault is the model's own, it comes again.
        except Exception as error:
            logger.warning(f"The backbone runs uncompiled, since torch.compile failed: {error}")
            backbone.forward = plain
            return plain(images)

    backbone.forward = forward


def train_in_bfloat16(model: nn.Module) -> None:
    """From now on training steps run under autocast; parameters and inference stay float32.

    bfloat16 has the range of float32, so that gradients need no scaling.
    """
    forward = model.forward

    def cheap_forward(*args, **kwargs):
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=model.training):
            return forward(*args, **kwargs)

    model.forward = cheap_forward
