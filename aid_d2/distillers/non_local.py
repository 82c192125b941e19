"""Non-local distillation (Zhang & Ma, ICLR 2021, sec. 3.2): relations between pixels."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode as CN

from ..layers.adapters import PerLevel, level_adapters
from ..layers.distance import reference_ratio, weighted_distance
from ..structures import DistillBatch
from .base import DISTILLER_REGISTRY, Distiller


def non_local(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Dot-product non-local operation ``y_i = 1/K sum_j (theta_i . phi_j) g_j``.

    Without a softmax the product is associative: ``theta (phi^T g) / K`` needs no matrix of all
    pairs of locations, and costs O(C^2 HW) instead of O(C HW K).

    Args:
        theta: (N, C, H, W) queries.
        phi: (N, C, h, w) keys, K = h w.
        g: (N, C, h, w) values.

    Returns:
        (N, C, H, W)
    """
    query = theta.flatten(2).transpose(1, 2)
    key, value = phi.flatten(2), g.flatten(2)
    context = key @ value.transpose(1, 2) / key.shape[2]
    # Channels last in memory, as the maps are.
    return (query @ context).transpose(1, 2).unflatten(2, theta.shape[2:])


# The covariance of few values is nearly singular, and too inexact; with them it saves nothing
# either.
_FEW = 8


class NonLocalBlock(nn.Module):
    """``z = BN(W y) + x``, y the non-local operation on x (Wang et al., CVPR 2018, dot product).

    Mean and variance of W y follow from those of y, which has fewer channels, so that BN and W are
    applied as one 1x1 convolution. The batch norm starts at zero, the block as the identity.

    Args:
        channels: of x.
        inner_channels: of theta, phi and g.
        pool: keys and values are max-pooled by this factor.
    """

    def __init__(self, channels: int, inner_channels: int, pool: int):
        super().__init__()
        # theta, phi and g read x once.
        self.project = nn.Conv2d(channels, 3 * inner_channels, 1)
        # The norm would take away a bias.
        self.out = nn.Conv2d(inner_channels, channels, 1, bias=False)
        # Only its weight and bias are used. A BatchNorm2d without running statistics would stop
        # Detectron2's TEST.PRECISE_BN, which recomputes those of all.
        self.norm = nn.GroupNorm(1, channels)
        self.pool = pool
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), as is the result."""
        # Maps at the top of a pyramid can be smaller than the pooling window.
        window = [min(self.pool, size) for size in x.shape[-2:]]
        inner = self.out.in_channels
        theta, keys_and_values = self.project(x).split((inner, 2 * inner), dim=1)
        phi, g = F.max_pool2d(keys_and_values, window).chunk(2, dim=1)
        y = non_local(theta, phi, g)
        # Under autocast in float32 from here to the weight: rounded, a covariance can make a
        # variance of 0.
        y = y.to(x.dtype)
        centered = y - y.mean((0, 2, 3), keepdim=True)
        with torch.autocast(x.device.type, enabled=False):
            weight = self._normalized_out(centered)
        z = F.conv2d(centered, weight, self.norm.bias)
        # Adding another type would cost a CPU ten times as much.
        return z.add_(x.to(z.dtype))

    def _normalized_out(self, centered: Tensor) -> Tensor:
        """Weight of the convolution that is BN(W y) for y without its mean."""
        values, out = centered.movedim(1, -1).flatten(0, 2), self.out.weight.flatten(1)
        if len(values) < _FEW * len(out.T):
            variance = (values @ out.T).square().mean(0)
        else:
            covariance = values.T @ values / len(values)
            variance = ((out @ covariance) * out).sum(1).clamp(min=0)
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        return (out * scale[:, None])[:, :, None, None]


@DISTILLER_REGISTRY.register()
class NonLocal(Distiller):
    """``L_NLD = || W (NL_T(T) - f(NL_S(S))) ||_2`` per level, f a 1x1 convolution.

    Student and teacher have blocks of their own, both trained by this loss. AID's map is W. The
    norm is over the whole batch and not squared, see :class:`AttentionGuided`.
    """

    supports_bf16 = True

    @staticmethod
    def config():
        node = CN()
        # Values of AID's released code (2022). Zhang & Ma's own: 4.2e-4 and 7e-5.
        node.ONE_STAGE = CN({"WEIGHT": 4.9e-4})
        node.TWO_STAGE = CN({"WEIGHT": 4e-5})
        # Inner channels and pooling of the block at each level of the student, finest first
        # (released code).
        node.INNER_CHANNELS = (64, 64, 128, 128, 128)
        node.POOL = (8, 4, 2, 2, 2)
        # Keep the teacher's block as it starts, the identity, instead of training it too.
        node.DETACH_TEACHER = False
        # As in DISTILL.ATTENTIONGUIDED.
        node.NORMALIZE = True
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        num_levels = max(pair.position for pair in context.pairs) + 1
        if num_levels > min(len(node.INNER_CHANNELS), len(node.POOL)):
            raise ValueError(
                f"DISTILL.NONLOCAL.INNER_CHANNELS and POOL need a value for each of the student's "
                f"{num_levels} levels."
            )
        self.weight = context.constants(node).WEIGHT
        self.normalize = node.NORMALIZE
        self.student_blocks = PerLevel(
            context.pairs, lambda x: _block(x.student_channels, x.position, node)
        )
        self.teacher_blocks = PerLevel(
            context.pairs, lambda x: _block(x.teacher_channels, x.position, node)
        )
        self.adapters = level_adapters(context.pairs, 1)
        if node.DETACH_TEACHER:
            self.teacher_blocks.requires_grad_(False)

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        total: Any = 0.0
        for stride, s in batch.student.features.items():
            mine = self.adapters[stride](self.student_blocks[stride](s))
            theirs = self.teacher_blocks[stride](batch.teacher.features[stride])
            loss = weighted_distance(mine, theirs, batch.weights.maps[stride])
            if self.normalize:
                loss = loss / math.sqrt(reference_ratio(s, stride))
            total = total + loss
        return {"relation": self.weight * total}


def _block(channels: int, position: int, node: CN) -> NonLocalBlock:
    """The block of a level; position 0 is the student's finest."""
    return NonLocalBlock(channels, node.INNER_CHANNELS[position], node.POOL[position])
