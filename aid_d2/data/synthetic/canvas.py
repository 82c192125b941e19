"""A pinhole camera over flat ground, and an image that remembers which object owns each pixel.

World coordinates are those of KITTI's camera, in metres: x right, z forward; heights count upward
from the ground, against KITTI's y.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import cv2
import numpy as np

_SHIFT = 4  # polygons are drawn to 1/16 pixel
_NEAREST = 0.5

Colour = tuple[float, float, float] | np.ndarray
Option = TypeVar("Option")


def choose(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[rng.integers(len(options))]


@dataclass(frozen=True)
class Camera:
    """Looks along z from `elevation` metres above the ground.

    Attributes:
        width, height: of the image in pixels.
        focal: focal length in pixels.
        horizon: image row of the horizon.
        elevation: height above the ground in metres.
    """

    width: int
    height: int
    focal: float
    horizon: float
    elevation: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Maps (n, 3) world points (x, height, z) to (n, 2) pixels."""
        # What lies behind the camera would appear mirrored.
        z = np.maximum(points[:, 2], _NEAREST)
        u = self.width / 2 + self.focal * points[:, 0] / z
        v = self.horizon + self.focal * (self.elevation - points[:, 1]) / z
        return np.stack([u, v], axis=1)


@dataclass(frozen=True)
class Pose:
    """A place on the ground and a heading; `yaw` is KITTI's rotation_y in radians."""

    x: float
    z: float
    yaw: float = 0.0

    def to_world(self, local: np.ndarray) -> np.ndarray:
        """Maps (n, 3) points (forward, height, sideways) to world points (x, height, z)."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        forward, up, side = local.T
        x = self.x + cos * forward + sin * side
        z = self.z - sin * forward + cos * side
        return np.stack([x, up, z], axis=1)


@dataclass
class Light:
    """The sun and the air.

    Attributes:
        direction: unit vector to the sun (x, up, z).
        ambient: brightness of a face turned away from the sun, 0 to 1.
        haze_colour: RGB, 0 to 255.
        haze: extinction per metre.
    """

    direction: np.ndarray
    ambient: float
    haze_colour: np.ndarray
    haze: float

    def shade(self, normal: Sequence[float]) -> float:
        """Returns the brightness of a face with this unit normal (x, up, z)."""
        cosine = sum(float(d) * n for d, n in zip(self.direction, normal))
        return self.ambient + (1 - self.ambient) * max(0.0, cosine)

    def through_haze(self, colour: Colour, z: float) -> tuple[float, float, float]:
        kept = math.exp(-self.haze * max(z, 0.0))
        pairs = zip(colour, self.haze_colour)
        return tuple(kept * float(c) + (1 - kept) * float(h) for c, h in pairs)


@dataclass
class Canvas:
    """Image, light, camera, and the object that each pixel shows.

    Attributes:
        image: (height, width, 3) RGB, uint8.
        owner: (height, width) number of the object drawn last at a pixel; 0 for none.
    """

    camera: Camera
    light: Light
    image: np.ndarray
    owner: np.ndarray = field(init=False)
    _current: int = field(init=False, default=0)
    _bounds: list[np.ndarray] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.owner = np.zeros(self.image.shape[:2], np.uint8)

    def start_object(self, number: int) -> None:
        """What is drawn from now on belongs to this object; 0 for scenery."""
        self._current = number
        self._bounds = []

    def bounds(self) -> tuple[float, float, float, float]:
        """Returns x1, y1, x2, y2 of all drawn since `start_object`, in and outside the image."""
        points = np.concatenate(self._bounds)
        return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())

    def fill(self, polygons: Sequence[np.ndarray], colour: Colour, z: float) -> None:
        """Draws (n, 2) pixel polygons at depth `z`; where two of them overlap there is a hole."""
        fixed = [np.round(p * (1 << _SHIFT)).astype(np.int32) for p in polygons]
        seen = self.light.through_haze(colour, z)
        cv2.fillPoly(self.image, fixed, seen, lineType=cv2.LINE_AA, shift=_SHIFT)
        cv2.fillPoly(self.owner, fixed, self._current, shift=_SHIFT)
        if self._current:
            self._bounds.extend(polygons)

    def fill_world(self, points: np.ndarray, colour: Colour) -> None:
        """Draws one polygon of (n, 3) world points."""
        self.fill([self.camera.project(points)], colour, float(points[:, 2].mean()))
