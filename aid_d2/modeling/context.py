"""The two detectors of a distillation, and the levels that they share."""

import logging
from dataclasses import dataclass, replace

import torch

from detectron2.config import CfgNode

from ..structures import DetectorOutputs, DistillBatch, DistillWeights, LevelPair, Objects
from .wrappers import DetectorWrapper

logger = logging.getLogger(__name__)


@dataclass
class DistillContext:
    """What AID and the distillers are built for.

    Attributes:
        student: wrapper of the student.
        teacher: wrapper of the teacher.
        pairs: the levels to compare, finest first.
    """

    student: DetectorWrapper
    teacher: DetectorWrapper
    pairs: list[LevelPair]

    def constants(self, node: CfgNode) -> CfgNode:
        """The published constants that fit the student: those of its meta-architecture if the node
        has them, such as GFL, and else ONE_STAGE or TWO_STAGE.
        """
        own = self.student.detector.__name__.upper()
        if own in node:
            return node[own]
        return node.TWO_STAGE if self.student.two_stage else node.ONE_STAGE

    def align(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        objects: Objects,
        weights: DistillWeights,
        with_predictions: bool,
    ) -> DistillBatch:
        """Cut the paired maps of both detectors, and the weights, to the cells that both have.

        Both pyramids start at the same corner of the image and have the same stride, so that their
        sizes differ by padding alone. All maps come out in float32, channels last.

        Args:
            student, teacher: what they computed.
            objects: the ground truth.
            weights: AID's, for the teacher's maps.
            with_predictions: whether their predictions on these cells are wanted.

        Raises:
            ValueError: student and teacher have maps of other numbers of images.
        """
        cut = {}, {}, {}
        for pair in self.pairs:
            maps = [x[pair.stride] for x in (student.features, teacher.features, weights.maps)]
            if len(maps[0]) != len(maps[1]):
                raise ValueError(
                    f"The student has maps of {len(maps[0])} images and the teacher of "
                    f"{len(maps[1])}: one of them splits or repeats a batch, and cannot be "
                    "compared with the other."
                )
            height, width = (min(x.shape[dim] for x in maps) for dim in (-2, -1))
            for result, x in zip(cut, maps):
                result[pair.stride] = x[..., :height, :width].to(
                    torch.float32, memory_format=torch.channels_last
                )
        batch = DistillBatch(
            student=replace(student, features=cut[0]),
            teacher=replace(teacher, features=cut[1]),
            objects=objects,
            weights=DistillWeights(cut[2]),
        )
        if with_predictions:
            for wrapper, outputs in ((self.student, batch.student), (self.teacher, batch.teacher)):
                outputs.predictions = wrapper.predictions(outputs.features, outputs.head_outputs)
        return batch


def pair_levels(student: DetectorWrapper, teacher: DetectorWrapper) -> DistillContext:
    """Pair the levels of two detectors that have the same stride and origin, finest first.

    Raises:
        ValueError: there are none.
    """
    theirs = {(level.stride, level.origin): level for level in teacher.levels}
    pairs = [
        LevelPair(level.stride, level.channels, theirs[level.stride, level.origin].channels, i)
        for i, level in enumerate(student.levels)
        if (level.stride, level.origin) in theirs
    ]
    described = "; ".join(
        f"{who} {', '.join(f'{x.name} (stride {x.stride}, {x.origin[0]})' for x in wrapper.levels)}"
        for who, wrapper in (("student", student), ("teacher", teacher))
    )
    if not pairs:
        raise ValueError(f"Student and teacher share no pyramid level: {described}.")
    logger.info(f"Distilling at strides {[pair.stride for pair in pairs]} of {described}.")
    return DistillContext(student, teacher, pairs)
