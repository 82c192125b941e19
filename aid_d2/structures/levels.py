"""Levels of a feature pyramid, and of the predictions on it."""

from dataclasses import dataclass

from torch import Tensor


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


@dataclass(frozen=True)
class LevelShape:
    """A level of a dense prediction: `anchors` boxes at each of height x width locations."""

    stride: int
    height: int
    width: int
    anchors: int

    @property
    def num_anchors(self) -> int:
        """Of an image."""
        return self.height * self.width * self.anchors


def split_levels(anchors: Tensor, levels: list[LevelShape]) -> list[Tensor]:
    """Cut (N, R) values into levels, each (N, H, W, A)."""
    parts = anchors.split([x.num_anchors for x in levels], dim=1)
    return [p.view(len(p), x.height, x.width, x.anchors) for p, x in zip(parts, levels)]
