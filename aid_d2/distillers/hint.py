"""Hint learning (Romero et al., *FitNets: Hints for Thin Deep Nets*, ICLR 2015), for detectors as
in Chen et al., *Learning Efficient Object Detection Models with Knowledge Distillation*, NIPS 2017.
"""

from detectron2.config import CfgNode as CN

from ..layers.adapters import level_adapters
from ..layers.distance import mean_squared_error
from .base import DISTILLER_REGISTRY, LevelDistiller


@DISTILLER_REGISTRY.register()
class Hint(LevelDistiller):
    """Imitation of the teacher's maps, ``mean W (T - f(S))^2`` summed over levels, f a 1x1
    convolution per level.

    AID's map W weights each squared difference. Each level counts the same, whatever its area.
    """

    supports_bf16 = True

    @staticmethod
    def config():
        node = CN()
        # On each level. FitNets and Chen et al. hint at a single layer of the backbone; 1 is what
        # public code has for a mean over each map of a pyramid (HEAD, ECCV 2022).
        node.WEIGHT = 1.0
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.weight = node.WEIGHT
        self.adapters = level_adapters(context.pairs, 1)

    def level_loss(self, student, teacher, weight):
        return mean_squared_error(student, teacher, weight)
