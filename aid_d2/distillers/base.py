"""The interface of a distillation method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from ..weights import DistillWeights

if TYPE_CHECKING:
    from ..modeling.levels import LevelPair
    from ..modeling.outputs import DetectorOutputs
    from ..modeling.wrappers import DetectorWrapper

DISTILLER_REGISTRY = Registry("DISTILLER")
DISTILLER_REGISTRY.__doc__ = """
Distillation methods, by the name that DISTILL.METHODS uses. The keys of a method are in the node
DISTILL.<name in capitals>, as those of the meta-architecture RetinaNet are in MODEL.RETINANET.
"""


@dataclass
class DistillContext:
    """What a distiller is built for.

    Attributes:
        pairs: the levels to compare, finest first.
        student: wrapper of the student.
        teacher: wrapper of the teacher.
    """

    pairs: list[LevelPair]
    student: DetectorWrapper
    teacher: DetectorWrapper

    def constants(self, node: CfgNode) -> CfgNode:
        """The published constants that fit the student: those of its meta-architecture if the node
        has them, such as GFL, and else ONE_STAGE or TWO_STAGE.
        """
        own = self.student.detector.__name__.upper()
        if own in node:
            return node[own]
        return node.TWO_STAGE if self.student.two_stage else node.ONE_STAGE


class Distiller(nn.Module):
    """A distillation method: what it trains beside the student, and its losses.

    A subclass is registered in DISTILLER_REGISTRY and has a `config`, `__init__` and `forward`.

    Attributes:
        detectors: names of the meta-architectures that student and teacher may have; empty for any
            with a Detectron2 backbone.
        needs_predictions: whether it compares the dense predictions, `DetectorOutputs.predictions`. Student
            and teacher then need equal classes, anchors and levels.
        supports_bf16: whether it runs under autocast to bfloat16 where the teacher does. What its
            layers and products of matrices give is then rounded to 8 bits, which differences and
            their norms bear and a softmax over a map does not. Its inputs are float32 all the same.
    """

    detectors: tuple[str, ...] = ()
    needs_predictions = False
    supports_bf16 = False

    def taps(self, wrapper: DetectorWrapper) -> list[nn.Module]:
        """Modules of a detector, student or teacher, of which `DetectorOutputs.calls` is to tell."""
        return []

    @staticmethod
    def config() -> CfgNode:
        """The method's keys with their published values, for DISTILL.<name in capitals>."""
        raise NotImplementedError

    def __init__(self, node: CfgNode, context: DistillContext):
        """
        Args:
            node: the method's keys.
            context: the levels and the two detectors.

        Raises:
            ValueError: the method cannot serve these detectors.
        """
        super().__init__()

    def forward(
        self, student: DetectorOutputs, teacher: DetectorOutputs, weights: DistillWeights
    ) -> dict[str, Tensor]:
        """
        Args:
            student: what the student saw. The maps of all three have equal sizes, in float32.
            teacher: what the teacher saw, without gradient.
            weights: AID's weights. A method multiplies each term of its loss by the weight that
                belongs there, so that a constant weight w gives w times the loss.

        Returns:
            scalar losses by the name of the part. Every parameter of the method has to take part
            in each step, which DDP demands.
        """
        raise NotImplementedError
