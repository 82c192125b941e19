"""Pedestrians and cyclists: limbs of a jointed figure, drawn flat at the figure's depth."""

import math
from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, Colour, Pose, choose

_SKIN = ((238, 200, 170), (206, 158, 120), (150, 104, 74), (98, 66, 48))
_HAIR = ((30, 24, 20), (92, 60, 34), (170, 130, 70), (130, 128, 126))
_TROUSERS = ((38, 44, 66), (46, 44, 42), (120, 104, 78), (70, 84, 112))
_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 15)[:-1]) for f in (np.cos, np.sin)], axis=1)


class Figure:
    """Draws parts given as local points (forward, height, sideways) in metres, seen from afar."""

    def __init__(self, canvas: Canvas, pose: Pose):
        self.canvas, self.z = canvas, pose.z
        camera = canvas.camera
        self.scale = camera.focal / pose.z
        self.origin = camera.project(np.array([[pose.x, 0.0, pose.z]]))[0]
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)

    def _pixel(self, point: tuple[float, float, float]) -> np.ndarray:
        forward, up, side = point
        x = self.cos * forward + self.sin * side
        return self.origin + self.scale * np.array([x, -up])

    def limb(self, start, end, width: float, colour: Colour, taper: float = 1.0) -> None:
        """A bar from `start` to `end`, `width` metres wide at its start."""
        a, b = self._pixel(start), self._pixel(end)
        along = b - a
        norm = math.hypot(*along)
        across = np.array([-along[1], along[0]]) / max(norm, 1e-6) * self.scale * width / 2
        points = [a + across, b + taper * across, b - taper * across, a - across]
        self.canvas.fill([np.array(points)], colour, self.z)

    def ball(self, centre, radius: float, colour: Colour, stretch: float = 1.0) -> None:
        points = self._pixel(centre) + self.scale * radius * _CIRCLE * (1, stretch)
        self.canvas.fill([points], colour, self.z)

    def wheel(self, centre, radius: float, colour: Colour) -> None:
        """A ring in the plane of travel, never thinner than a tyre."""
        x = math.copysign(max(abs(self.cos), 0.08), self.cos)
        outer = self._pixel(centre) + self.scale * radius * _CIRCLE * (x, 1)
        inner = self._pixel(centre) + self.scale * radius * _CIRCLE * (0.84 * x, 0.84)
        self.canvas.fill([outer, inner], colour, self.z)


@dataclass(frozen=True)
class Person:
    """Someone standing or walking; size is height, width, length in metres."""

    size: tuple[float, float, float]
    stride: float
    skin: Colour
    hair: Colour
    top: Colour
    trousers: Colour
    bag: Colour | None
    kind: str = "Pedestrian"

    def draw(self, canvas: Canvas, pose: Pose) -> None:
        figure = Figure(canvas, pose)
        h = self.size[0]
        hip, shoulder = 0.5 * h, 0.82 * h
        for side, swing in ((-1, self.stride), (1, -self.stride)):
            knee, foot = (0.4 * swing, 0.27 * h, side * 0.09), (swing, 0.03 * h, side * 0.1)
            dark = np.multiply(self.trousers, 0.85 if side < 0 else 1.0)
            figure.limb((0, hip, side * 0.09), knee, 0.18, dark, taper=0.85)
            figure.limb(knee, foot, 0.14, dark, taper=0.8)
            toe = (foot[0] + 0.16, 0.01, foot[2])
            figure.limb(foot, toe, 0.09, (40, 36, 34))
        self._draw_arm(figure, -1)
        for side in (-0.1, 0.1):
            figure.limb((0, 0.47 * h, side), (0.02, shoulder, side * 1.2), 0.26, self.top)
        figure.limb((0, 0.47 * h, 0), (0.02, shoulder, 0), 0.3, self.top)
        if self.bag is not None:
            figure.limb((-0.16, 0.58 * h, 0), (-0.16, 0.8 * h, 0), 0.24, self.bag)
        self._draw_arm(figure, 1)
        figure.limb((0.02, 0.8 * h, 0), (0.03, 0.88 * h, 0), 0.11, self.skin)
        figure.ball((0.03, 0.93 * h, 0), 0.105, self.skin, stretch=1.15)
        figure.ball((0.0, 0.962 * h, 0), 0.1, self.hair, stretch=0.72)

    def _draw_arm(self, figure: Figure, side: int) -> None:
        h, swing = self.size[0], side * 0.7 * self.stride
        elbow = (0.4 * swing - 0.03, 0.63 * h, side * 0.25)
        hand = (swing, 0.48 * h, side * 0.25)
        sleeve = np.multiply(self.top, 0.82)
        figure.limb((0.02, 0.81 * h, side * 0.2), elbow, 0.12, sleeve)
        figure.limb(elbow, hand, 0.1, sleeve)
        figure.ball(hand, 0.055, self.skin)


@dataclass(frozen=True)
class Bicycle:
    """A bicycle, as it stands about."""

    frame: Colour

    def draw(self, canvas: Canvas, pose: Pose) -> None:
        figure = Figure(canvas, pose)
        rear, front = (-0.52, 0.34, 0), (0.52, 0.34, 0)
        seat, head, pedals = (-0.18, 0.92, 0), (0.4, 0.9, 0), (-0.02, 0.32, 0)
        for hub in (rear, front):
            figure.wheel(hub, 0.34, (28, 28, 30))
        for start, end in (
            *((rear, seat), (rear, pedals), (pedals, seat), (pedals, head), (seat, head)),
            *((head, front), (head, (0.38, 1.05, 0))),
        ):
            figure.limb(start, end, 0.06, self.frame)
        figure.limb((0.38, 1.05, -0.26), (0.38, 1.05, 0.26), 0.05, (40, 40, 42))
        figure.limb((-0.3, 0.95, 0), (-0.06, 0.95, 0), 0.08, (30, 30, 30))


@dataclass(frozen=True)
class Cyclist:
    """A bicycle and its rider; size is height, width, length in metres."""

    size: tuple[float, float, float]
    rider: Person
    bicycle: Bicycle
    helmet: bool
    pedal: float
    kind: str = "Cyclist"

    def draw(self, canvas: Canvas, pose: Pose) -> None:
        self._draw_leg(Figure(canvas, pose), -1)
        self.bicycle.draw(canvas, pose)
        figure, rider = Figure(canvas, pose), self.rider
        hip, shoulder = (-0.16, 0.98, 0), (0.14, self.size[0] - 0.3, 0)
        for side in (-0.1, 0.0, 0.1):
            start, end = (hip[0], hip[1], side), (shoulder[0], shoulder[1], 1.4 * side)
            figure.limb(start, end, 0.26, rider.top)
        self._draw_leg(figure, 1)
        for side in (-1, 1):
            elbow = (0.3, shoulder[1] - 0.28, side * 0.27)
            sleeve = np.multiply(rider.top, 0.82)
            figure.limb((shoulder[0], shoulder[1] - 0.03, side * 0.19), elbow, 0.11, sleeve)
            figure.limb(elbow, (0.38, 1.06, side * 0.24), 0.09, rider.skin)
        figure.limb(shoulder, (0.2, self.size[0] - 0.18, 0), 0.11, rider.skin)
        figure.ball((0.22, self.size[0] - 0.13, 0), 0.11, rider.skin, stretch=1.1)
        cap = rider.bag if self.helmet and rider.bag is not None else rider.hair
        figure.ball((0.2, self.size[0] - 0.08, 0), 0.125, cap, stretch=0.7)

    def _draw_leg(self, figure: Figure, side: int) -> None:
        angle = self.pedal + (math.pi if side < 0 else 0)
        foot = (-0.02 + 0.17 * math.cos(angle), 0.32 + 0.17 * math.sin(angle), side * 0.12)
        knee = (0.2 + 0.06 * math.cos(angle), 0.68 + 0.1 * math.sin(angle), side * 0.13)
        colour = np.multiply(self.rider.trousers, 0.85 if side < 0 else 1.0)
        figure.limb((-0.16, 0.98, side * 0.09), knee, 0.18, colour, taper=0.8)
        figure.limb(knee, foot, 0.13, colour, taper=0.75)
        figure.limb(foot, (foot[0] + 0.16, foot[1] - 0.02, foot[2]), 0.08, (40, 36, 34))


def random_person(rng: np.random.Generator) -> Person:
    """Draws a child or adult with clothes of any colour."""
    height = float(rng.uniform(1.1, 1.4) if rng.random() < 0.12 else rng.uniform(1.55, 1.92))
    stride = float(rng.uniform(0.1, 0.34)) if rng.random() < 0.75 else 0.03
    skin = np.array(choose(rng, _SKIN))
    hair = np.array(choose(rng, _HAIR))
    top, bag = _clothes(rng), _clothes(rng)
    trousers = np.array(choose(rng, _TROUSERS))
    has_bag = rng.random() < 0.3
    size = (height, 0.36 * height, 0.36 * height)
    return Person(size, stride, skin, hair, top, trousers, bag if has_bag else None)


def random_bicycle(rng: np.random.Generator) -> Bicycle:
    return Bicycle(_clothes(rng))


def random_cyclist(rng: np.random.Generator) -> Cyclist:
    size = (float(rng.uniform(1.65, 1.85)), 0.6, 1.75)
    helmet, pedal = bool(rng.random() < 0.6), float(rng.uniform(0, 2 * np.pi))
    return Cyclist(size, random_person(rng), random_bicycle(rng), helmet, pedal)


def _clothes(rng: np.random.Generator) -> np.ndarray:
    """A colour of any hue: some garish, most muted."""
    grey = rng.uniform(30, 225)
    return np.clip(grey + rng.uniform(0.2, 1.0) * rng.uniform(-120, 120, 3), 10, 250)
