"""The two detectors of a distillation, and the levels that they share."""

import logging
from dataclasses import dataclass

from detectron2.config import CfgNode

from ..structures import LevelPair
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
