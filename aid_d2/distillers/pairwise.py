"""Pair-wise distillation (Liu et al., *Structured Knowledge Distillation for Semantic
Segmentation*, CVPR 2019): imitation of the similarity of each two locations.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode as CN

from ..layers.adapters import PerLevel
from .base import DISTILLER_REGISTRY, LevelDistiller

# Least length that a vector of channels is divided by. It bounds the gradient where they vanish.
_MIN_LENGTH = 1e-4


def pairwise_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """``1/N sum_n 1/R^2 sum_ij sqrt(w_i w_j) (t_i.t_j - s_i.s_j)^2`` (Liu et al.).

    t_i and s_i are the channels at location i, divided by their length. With ``w^(1/4)`` drawn into
    them as columns of A and B, the sum is ``||A'A - B'B||^2``, which equals ``||AA'||^2 + ||BB'||^2
    - 2 ||AB'||^2``: matrices of channels instead of locations, of which p2 of 800x1344 has 16800,
    1.1 GB for an image, after pooling. The difference of large numbers needs double precision; in
    single precision the loss would be noise once student and teacher come near each other.

    Args:
        student: (N, C', H, W), R = H W.
        teacher: (N, C, H, W); C may differ from C'.
        weight: w of AID (N, 1, H, W), positive.

    Returns:
        ()
    """
    fourth_root = weight.double().sqrt().sqrt()
    a, b = (
        (F.normalize(x.double(), dim=1, eps=_MIN_LENGTH) * fourth_root).flatten(2)
        for x in (teacher, student)
    )
    squares = _squared_product(a, a) + _squared_product(b, b) - 2 * _squared_product(a, b)
    return (squares.clamp(min=0) / a.shape[2] ** 2).mean().to(student.dtype)


def _squared_product(a: Tensor, b: Tensor) -> Tensor:
    """``||a b'||^2`` (N,) of a (N, C, R) and b (N, C', R)."""
    return (a @ b.transpose(1, 2)).square().sum((1, 2))


@DISTILLER_REGISTRY.register()
class Pairwise(LevelDistiller):
    """Imitation of similarities, summed over levels: no adapter is needed, since student and
    teacher are compared by what they say of two locations.

    The maps are max-pooled by 2, so that a node of the graph stands for 2x2 locations and is
    connected with all others; the released code, on the last map of a segmentation network, takes
    windows of half the map instead, 2x2 nodes in all. There the gradient does not pass through the
    length of the channels; here it does, as the equation has it.

    AID's map is pooled to the nodes by its mean; a pair of nodes has the weight ``sqrt(w_i w_j)``.
    """

    part = "similarity"

    @staticmethod
    def config():
        node = CN()
        # On each level (released code).
        node.WEIGHT = 0.5
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.weight = node.WEIGHT
        self.adapters = PerLevel(context.pairs, lambda pair: nn.Identity())

    def level_loss(self, student, teacher, weight):
        # Maps at the top of a pyramid can be smaller than the pooling window.
        window = tuple(min(2, size) for size in student.shape[-2:])
        return pairwise_loss(
            F.max_pool2d(student, window),
            F.max_pool2d(teacher, window),
            F.avg_pool2d(weight, window),
        )
