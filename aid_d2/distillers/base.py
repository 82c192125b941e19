"""The interface of a distillation method."""

from typing import Any

from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from ..layers.adapters import PerLevel
from ..modeling.context import DistillContext
from ..modeling.wrappers import DetectorWrapper
from ..structures import DistillBatch

DISTILLER_REGISTRY = Registry("DISTILLER")
DISTILLER_REGISTRY.__doc__ = """
Distillation methods, by the name that DISTILL.METHODS uses. The keys of a method are in the node
DISTILL.<name in capitals>, as those of the meta-architecture RetinaNet are in MODEL.RETINANET.
"""


def check_levels_double(name: str, context: DistillContext) -> None:
    """
    Raises:
        ValueError: boxes cannot be pooled from the levels that a method compares.
    """
    strides = [pair.stride for pair in context.pairs]
    if any(after != 2 * before for before, after in zip(strides, strides[1:])):
        raise ValueError(
            f"DISTILL.METHODS: {name} pools boxes, for which strides have to double from level to "
            f"level; student and teacher share {strides}. Give both the levels between, or use a "
            "method of maps such as PKD."
        )


class Distiller(nn.Module):
    """A distillation method: what it trains beside the student, and its losses.

    A subclass is registered in DISTILLER_REGISTRY and has a `config`, `__init__` and `forward`.

    Attributes:
        needs_predictions: whether it compares the dense predictions, `DetectorOutputs.predictions`.
            Student and teacher then need equal classes, anchors and levels.
        supports_bf16: whether it runs under autocast to bfloat16 where the teacher does. What its
            layers and products of matrices give is then rounded to 8 bits, which differences and
            their norms bear and a softmax over a map does not. Its inputs are float32 all the same.
    """

    needs_predictions = False
    supports_bf16 = False

    def recorded_modules(self, wrapper: DetectorWrapper, side: str) -> list[nn.Module]:
        """Modules of a detector of which `DetectorOutputs.calls` is to tell.

        Args:
            wrapper: of the detector.
            side: which one it is, `student` or `teacher`.
        """
        return []

    @staticmethod
    def config() -> CfgNode:
        """The method's keys with their published values, for DISTILL.<name in capitals>."""
        raise NotImplementedError

    def __init__(self, node: CfgNode, context: DistillContext):
        """
        Args:
            node: the method's keys.
            context: the two detectors, and the levels to compare.

        Raises:
            ValueError: the method cannot serve these detectors.
        """
        super().__init__()

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        """
        Args:
            batch: what both detectors computed, the ground truth, and AID's weights. A method
                multiplies each term of its loss by the weight that belongs there, so that a
                constant weight w gives w times the loss.

        Returns:
            scalar losses by the name of the part. Every parameter of the method has to take part
            in each step, which DDP demands.
        """
        raise NotImplementedError


class LevelDistiller(Distiller):
    """A method that compares the maps of each level by themselves, and sums over levels.

    A subclass has a `level_loss`, a factor `weight` and `adapters` for the student's maps.

    Attributes:
        part: name of the loss.
    """

    part = "feature"
    weight: float
    adapters: PerLevel

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        total: Any = sum(
            self.level_loss(
                self.adapters[stride](s), batch.teacher.features[stride], batch.weights.maps[stride]
            )
            for stride, s in batch.student.features.items()
        )
        return {self.part: self.weight * total}

    def level_loss(self, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        """The loss () of one level.

        Args:
            student: S (N, C, H, W), adapted.
            teacher: T (N, C, H, W).
            weight: W of AID (N, 1, H, W).
        """
        raise NotImplementedError
