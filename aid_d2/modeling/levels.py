"""Levels of two feature pyramids, paired."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..weights import DistillWeights

if TYPE_CHECKING:
    from .outputs import DetectorOutputs
    from .wrappers import DetectorWrapper

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Level:
    """One map of a pyramid.

    Attributes:
        name: in the backbone's output.
        stride: in pixels of the network's input.
        channels: of the map.
        origin: how the map is made. Maps of equal stride and different origin, such as a max-pooled
            and a convolved p6, mean different things.
    """

    name: str
    stride: int
    channels: int
    origin: tuple[str, ...]


@dataclass(frozen=True)
class LevelPair:
    """The maps of student and teacher at one stride.

    Attributes:
        stride: in pixels of the network's input.
        student_channels: of the student's map.
        teacher_channels: of the teacher's map.
        position: of the level in the student's pyramid, 0 being the finest.
    """

    stride: int
    student_channels: int
    teacher_channels: int
    position: int


def pair_levels(student: DetectorWrapper, teacher: DetectorWrapper) -> list[LevelPair]:
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
    return pairs


def align(
    pairs: list[LevelPair],
    student: DetectorOutputs,
    teacher: DetectorOutputs,
    weights: DistillWeights,
) -> tuple[DetectorOutputs, DetectorOutputs, DistillWeights]:
    """Cut the paired maps of both detectors, and the weights, to the cells that both have.

    Both pyramids start at the same corner of the image and have the same stride, so that their
    sizes differ by padding alone.

    Returns:
        student, teacher and weights with maps at the paired strides only, in float32 and all in one
        order in memory, channels last.
    """
    cut = [{}, {}, {}]
    for pair in pairs:
        maps = [x[pair.stride] for x in (student.features, teacher.features, weights.maps)]
        height, width = (min(x.shape[dim] for x in maps) for dim in (-2, -1))
        for result, x in zip(cut, maps):
            result[pair.stride] = x[..., :height, :width].to(
                torch.float32, memory_format=torch.channels_last
            )
    return (
        replace(student, features=cut[0]),
        replace(teacher, features=cut[1]),
        DistillWeights(cut[2]),
    )
