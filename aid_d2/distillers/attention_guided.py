"""Attention-guided distillation (Zhang & Ma, *Improve Object Detection with Feature-based Knowledge
Distillation*, ICLR 2021), the method on which AID was published.
"""

import math
from typing import Any

import torch
from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.adapters import PerLevel, identity_conv, identity_linear, level_adapters
from ..layers.attention import channel_attention, spatial_attention
from ..layers.distance import reference_ratio, weighted_distance
from ..structures import DistillBatch
from .base import DISTILLER_REGISTRY, Distiller


def _published(feature: float, channel: float, spatial: float, temperature: float) -> CN:
    node = CN()
    node.FEATURE_WEIGHT = feature  # of L_AM
    node.CHANNEL_WEIGHT = channel  # of L_AT, channel part
    node.SPATIAL_WEIGHT = spatial  # of L_AT, spatial part
    node.TEMPERATURE = temperature  # T of both attentions
    return node


@DISTILLER_REGISTRY.register()
class AttentionGuided(Distiller):
    """Imitation of the teacher's maps where either detector looks, and of its attention.

    Per level, with f1 a 1x1 convolution, f3 a 3x3 convolution and Lin a linear layer:

        L_AM  = || W sqrt(Ms Mc) (T - f1(S)) ||_2
        L_ATc = || w (GAP(T) - Lin(GAP(S))) ||_2
        L_ATs = || W (mean_c T - f3(mean_c S)) ||_2

    Ms and Mc are the mean attention of both detectors, detached. AID's map is W, and w its mean
    under Ms. The norms are over the whole batch and not squared, as published. There their strength
    grows with the square root of images x area of a GPU; NORMALIZE takes that out.

    Two choices of this project: the adapters start as the identity where shapes allow, so that a
    student equal to its teacher has no loss; and where the numbers of channels differ, Mc is the
    teacher's alone, since the student's channels do not correspond to it.
    """

    supports_bf16 = True

    @staticmethod
    def config():
        node = CN()
        # Values of AID's released code (2022). Zhang & Ma's own: 4.2e-4, 2.4e-2, 2.4e-2, T 0.1 in
        # one-stage and 7e-5, 4e-3, 4e-3, T 0.5 in two-stage detectors.
        node.ONE_STAGE = _published(5.6e-4, 2.4e-2, 2.4e-2, 0.1)
        node.TWO_STAGE = _published(4e-5, 8e-3, 8e-3, 0.5)
        # Divide each norm by what makes it grow with batch and image size, so that it always has
        # the published strength at 2 images of 800x1333. False: as published.
        node.NORMALIZE = True
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.constants = context.constants(node)
        self.normalize = node.NORMALIZE
        self.feature_adapters = level_adapters(context.pairs, 1)
        self.channel_adapters = PerLevel(
            context.pairs, lambda x: identity_linear(x.student_channels, x.teacher_channels)
        )
        self.spatial_adapters = PerLevel(context.pairs, lambda x: identity_conv(1, 1, 3))

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        losses: dict[str, Any] = {"feature": [], "channel": [], "spatial": []}
        for stride, s in batch.student.features.items():
            t, weight = batch.teacher.features[stride], batch.weights.maps[stride]
            spatial, channel = self._masks(s, t)
            area = images = 1.0
            if self.normalize:
                area, images = math.sqrt(reference_ratio(s, stride)), math.sqrt(len(s) / 2)
            # As sums, not means: the gradient of a sum is an expanded view, of a mean a map.
            vector, plane = s.sum((2, 3)) / s[0, 0].numel(), s.sum(1, keepdim=True) / s.shape[1]
            feature = weighted_distance(
                self.feature_adapters[stride](s), t, channel.sqrt(), weight * spatial.sqrt()
            )
            pooled = weighted_distance(
                self.channel_adapters[stride](vector),
                t.mean((2, 3)),
                batch.weights.pooled(stride, spatial),
            )
            mean = weighted_distance(
                self.spatial_adapters[stride](plane), t.mean(1, keepdim=True), weight
            )
            losses["feature"].append(feature / area)
            losses["channel"].append(pooled / images)
            losses["spatial"].append(mean / area)
        return {
            part: self.constants[f"{part.upper()}_WEIGHT"] * sum(values)
            for part, values in losses.items()
        }

    @torch.no_grad()
    def _masks(self, student: Tensor, teacher: Tensor):
        temperature = self.constants.TEMPERATURE
        theirs, own = teacher.abs(), student.abs()
        spatial = spatial_attention(theirs, temperature) + spatial_attention(own, temperature)
        channel = channel_attention(theirs, temperature)
        if theirs.shape[1] == own.shape[1]:
            channel = (channel + channel_attention(own, temperature)) / 2
        return spatial / 2, channel
