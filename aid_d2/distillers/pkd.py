"""PKD (Cao et al., *PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient*, NeurIPS 2022).
"""

import torch
from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.adapters import channel_adapters
from .base import DISTILLER_REGISTRY, LevelDistiller

_EPSILON = 1e-6


def standardize(x: Tensor, weight: Tensor) -> Tensor:
    """``(x - mean) / (std + 1e-6)`` of each channel, over images and locations by their weights.

    A channel that is constant becomes 0. The standard deviation is that of the values themselves
    (1/n, the released code: 1/(n-1)): it exists for a single value too, and makes half the mean
    squared difference of two channels exactly 1 - r.

    Args:
        x: (N, C, H, W), as is the result.
        weight: (N, 1, H, W), positive.
    """
    dims = 0, 2, 3
    share = weight / weight.sum()
    centred = x - x.detach().mean(dims, keepdim=True)  # a large mean would round
    centred = centred - (share * centred).sum(dims, keepdim=True)
    std = torch.linalg.vector_norm(share.sqrt() * centred, dim=dims, keepdim=True)
    return centred / (std + _EPSILON)


def correlation_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """``1/2 mean W (T~ - S~)^2`` of standardized maps (Cao et al.): the mean of W times the mean
    over channels of 1 - r, r being Pearson's correlation under W.

    Args:
        student: S (N, C, H, W), adapted.
        teacher: T of the same shape.
        weight: W of AID (N, 1, H, W).
    """
    difference = standardize(teacher, weight) - standardize(student, weight)
    return (weight * difference.square()).mean() / 2


@DISTILLER_REGISTRY.register()
class PKD(LevelDistiller):
    """Imitation of the pattern of each channel, whatever its mean and scale: ``1 - r`` summed over
    levels, which lets student and teacher be of different kinds.

    No adapter is needed where the numbers of channels agree, and elsewhere a 1x1 convolution. The
    gradient flows through the student's mean and deviation. AID's map W weights each squared
    difference of the standardized maps, and the statistics: a location of little weight would
    otherwise be moved to suit the others.

    The released configs leave out the coarsest of five levels; here all that have a pair count.
    """

    @staticmethod
    def config():
        node = CN()
        # On each level (released configs of RetinaNet and Faster R-CNN).
        node.ONE_STAGE = CN({"WEIGHT": 10.0})
        node.TWO_STAGE = CN({"WEIGHT": 6.0})
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.weight = context.constants(node).WEIGHT
        self.adapters = channel_adapters(context.pairs)

    def level_loss(self, student, teacher, weight):
        return correlation_loss(student, teacher, weight)
