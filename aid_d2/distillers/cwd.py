"""CWD (Shu et al., *Channel-wise Knowledge Distillation for Dense Prediction*, ICCV 2021)."""

from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.adapters import channel_adapters
from .base import DISTILLER_REGISTRY, LevelDistiller


def channel_divergence(
    student: Tensor, teacher: Tensor, weight: Tensor, temperature: float
) -> Tensor:
    """``T^2 / (N C) sum W (p log(p/q) - p + q)``, p and q the softmax of each channel / T over its
    locations in teacher and student (Shu et al.).

    p and q both sum to 1, so that for a constant W this is W KL(p || q). The terms - p + q matter
    where W varies: they make each summand positive but at p = q, where the loss is least for any W.

    Args:
        student: (N, C, H, W), adapted.
        teacher: of the same shape.
        weight: W of AID (N, 1, H, W).
        temperature: T.
    """
    log_p, log_q = ((x.flatten(2) / temperature).log_softmax(2) for x in (teacher, student))
    p, q = log_p.exp(), log_q.exp()
    divergence = weight.flatten(2) * (p * (log_p - log_q) - p + q)
    return divergence.sum() * temperature**2 / (teacher.shape[0] * teacher.shape[1])


@DISTILLER_REGISTRY.register()
class CWD(LevelDistiller):
    """Imitation of where each channel is active: the KL divergence of its distributions over the
    locations, the mean over images and channels, summed over levels.

    The student has a 1x1 convolution where the numbers of channels differ. AID's map W weights the
    summand of each location.
    """

    part = "channel"

    @staticmethod
    def config():
        node = CN()
        # On each level (released code, RetinaNet). MMRazor's configs have 10 for Faster R-CNN,
        # RetinaNet and GFL.
        node.WEIGHT = 5.0
        # T (both).
        node.TEMPERATURE = 1.0
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.weight = node.WEIGHT
        self.temperature = node.TEMPERATURE
        self.adapters = channel_adapters(context.pairs)

    def level_loss(self, student, teacher, weight):
        return channel_divergence(student, teacher, weight, self.temperature)
