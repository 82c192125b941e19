"""The interface of a distillation method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, List

from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from ..aid import Trust

if TYPE_CHECKING:
    from ..modeling.families import DetectorFamily
    from ..modeling.levels import LevelPair
    from ..modeling.observation import Observation

DISTILLER_REGISTRY = Registry("DISTILLER")
DISTILLER_REGISTRY.__doc__ = """
Distillation methods, by the name that DISTILL.METHODS uses. The keys of a method are in the node
DISTILL.<name in capitals>, as those of the meta-architecture RetinaNet are in MODEL.RETINANET.
"""


@dataclass
class Setting:
    """What a distiller is built for.

    Attributes:
        pairs: the levels to compare, finest first.
        student: family of the student.
        teacher: family of the teacher.
    """

    pairs: List[LevelPair]
    student: DetectorFamily
    teacher: DetectorFamily

    def constants(self, node: CfgNode) -> CfgNode:
        """The published constants that fit the student: the node's ONE_STAGE or TWO_STAGE."""
        return node.TWO_STAGE if self.student.two_stage else node.ONE_STAGE


class Distiller(nn.Module):
    """A distillation method: what it trains beside the student, and its losses.

    A subclass is registered in DISTILLER_REGISTRY and implements the three methods below.

    Attributes:
        needs_predictions: whether it looks at the teacher's dense predictions.
    """

    needs_predictions = False

    @staticmethod
    def config() -> CfgNode:
        """The method's keys with their published values, for DISTILL.<name in capitals>."""
        raise NotImplementedError

    def __init__(self, node: CfgNode, setting: Setting):
        """
        Args:
            node: the method's keys.
            setting: the levels and the two detectors.

        Raises:
            ValueError: the method cannot serve these detectors.
        """
        super().__init__()

    def forward(
        self, student: Observation, teacher: Observation, trust: Trust
    ) -> Dict[str, Tensor]:
        """
        Args:
            student: what the student saw. The maps of all three have equal sizes, in float32.
            teacher: what the teacher saw, without gradient.
            trust: AID's weights. A method multiplies them into the difference inside its norm, so
                that a constant weight w gives w times the loss.

        Returns:
            scalar losses by the name of the part. Every parameter of the method has to take part
            in each step, which DDP demands.
        """
        raise NotImplementedError
