"""What a distiller gets in each training step."""

from dataclasses import dataclass

from .levels import LevelShape
from .objects import Objects
from .outputs import DetectorOutputs
from .weights import DistillWeights


@dataclass
class DistillBatch:
    """
    Attributes:
        student: what the student computed. Its maps, the teacher's and the weights have equal
            sizes and are float32.
        teacher: what the teacher computed, without gradient.
        objects: the ground truth.
        weights: AID's weights.
    """

    student: DetectorOutputs
    teacher: DetectorOutputs
    objects: Objects
    weights: DistillWeights

    @property
    def levels(self) -> list[LevelShape]:
        """The compared maps, finest first, as levels of one anchor at each location."""
        maps = self.teacher.features
        return [LevelShape(stride, x.shape[-2], x.shape[-1], 1) for stride, x in maps.items()]
