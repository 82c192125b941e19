"""Cars, vans and trucks: a side profile extruded over the width, with windows and wheels."""

import math
from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, Colour, Pose, choose

_GLASS = (52, 62, 74)
_TYRE = (26, 26, 28)
_RIM = (150, 152, 156)
_PAINTS = (
    *((196, 30, 34), (28, 62, 140), (235, 235, 232), (40, 42, 46), (150, 154, 160), (92, 96, 100)),
    *((222, 178, 40), (34, 96, 62), (126, 34, 44), (188, 172, 146), (70, 130, 190), (240, 120, 30)),
)


@dataclass(frozen=True)
class Body:
    """A shape of vehicle.

    Attributes:
        kind: KITTI type.
        size: height, width, length in metres.
        profile: (n, 3) of position along the length (-.5 rear to .5 front), height and width, each
            as a fraction of `size`; from the rear bumper over the roof to the front bumper.
        glass: edges of the profile that are windows across the width.
        windows: side windows, each (k, 2) in fractions of length and height.
        axles: of the wheels, as fractions of the length.
        wheel: radius in metres.
    """

    kind: str
    size: tuple[float, float, float]
    profile: np.ndarray
    glass: tuple[int, ...]
    windows: tuple[np.ndarray, ...]
    axles: tuple[float, ...] = (-0.31, 0.31)
    wheel: float = 0.33


def _body(kind, size, profile, glass, windows, **kwargs) -> Body:
    return Body(kind, size, np.array(profile), glass, tuple(np.array(w) for w in windows), **kwargs)


CARS = (
    _body(  # saloon
        "Car",
        (1.46, 1.76, 4.5),
        [(-0.5, 0.16, 1), (-0.5, 0.62, 1), (-0.36, 0.68, 1), (-0.2, 1, 0.8), (0.08, 1, 0.8)]
        + [(0.24, 0.66, 1), (0.46, 0.56, 1), (0.5, 0.16, 1)],
        (2, 4),
        [
            [(-0.29, 0.7), (-0.19, 0.93), (-0.06, 0.93), (-0.06, 0.68)],
            [(-0.03, 0.68), (-0.03, 0.93), (0.07, 0.93), (0.19, 0.67)],
        ],
    ),
    _body(  # hatchback
        "Car",
        (1.5, 1.7, 3.9),
        [(-0.5, 0.16, 1), (-0.5, 0.6, 1), (-0.4, 0.98, 0.82), (0.06, 1, 0.82), (0.26, 0.64, 1)]
        + [(0.46, 0.54, 1), (0.5, 0.16, 1)],
        (1, 3),
        [
            [(-0.42, 0.68), (-0.36, 0.92), (-0.14, 0.93), (-0.14, 0.66)],
            [(-0.11, 0.66), (-0.11, 0.93), (0.05, 0.93), (0.2, 0.66)],
        ],
    ),
    _body(  # off-roader
        "Car",
        (1.75, 1.88, 4.6),
        [(-0.5, 0.2, 1), (-0.5, 0.62, 1), (-0.47, 0.97, 0.88), (0.1, 1, 0.88), (0.24, 0.67, 1)]
        + [(0.47, 0.6, 1), (0.5, 0.2, 1)],
        (1, 3),
        [
            [(-0.45, 0.68), (-0.43, 0.93), (-0.2, 0.94), (-0.2, 0.67)],
            [(-0.17, 0.67), (-0.17, 0.94), (0.09, 0.94), (0.19, 0.67)],
        ],
        wheel=0.38,
    ),
)
VAN = _body(
    "Van",
    (2.1, 1.95, 5.0),
    [(-0.5, 0.14, 1), (-0.5, 0.55, 1), (-0.49, 0.97, 0.92), (0.22, 1, 0.92), (0.38, 0.6, 1)]
    + [(0.49, 0.48, 1), (0.5, 0.14, 1)],
    (1, 3),
    [[(0.06, 0.6), (0.06, 0.9), (0.22, 0.9), (0.34, 0.6)]],
)
TRUCK = _body(
    "Truck",
    (3.1, 2.4, 7.6),
    [(-0.5, 0.22, 1), (-0.5, 1, 1), (0.22, 1, 1), (0.24, 0.84, 0.92), (0.44, 0.84, 0.92)]
    + [(0.49, 0.48, 0.92), (0.5, 0.12, 0.92)],
    (4,),
    [[(0.32, 0.52), (0.32, 0.76), (0.42, 0.76), (0.46, 0.52)]],
    axles=(-0.36, -0.24, 0.36),
    wheel=0.5,
)


@dataclass(frozen=True)
class Vehicle:
    """A body of a certain size (height, width, length in metres) and paint."""

    body: Body
    size: tuple[float, float, float]
    paint: Colour

    @property
    def kind(self) -> str:
        return self.body.kind

    def draw(self, canvas: Canvas, pose: Pose) -> None:
        """Draws the faces turned to the camera, far ones first; the side comes last."""
        height, width, length = self.size
        cos, sin = math.cos(pose.yaw), math.sin(pose.yaw)
        elevation = canvas.camera.elevation
        outline = self.body.profile * (length, height, width / 2)

        self._draw_tyres(canvas, pose)
        faces = []
        for edge, (a, b) in enumerate(zip(outline[:-1], outline[1:])):
            along, up = b[0] - a[0], b[1] - a[1]
            norm = math.hypot(along, up)
            out, rise = -up / norm, along / norm
            centre_l, centre_up = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
            to_camera_l = -(cos * pose.x - sin * pose.z) - centre_l
            if out * to_camera_l + rise * (elevation - centre_up) <= 0:
                continue
            local = np.array(
                [(a[0], a[1], -a[2]), (b[0], b[1], -b[2]), (b[0], b[1], b[2]), (a[0], a[1], a[2])]
            )
            corners = pose.to_world(local)
            shade = canvas.light.shade((out * cos, rise, -out * sin))
            faces.append((float(corners[:, 2].mean()), edge, corners, shade))
        for _, edge, corners, shade in sorted(faces, key=lambda face: -face[0]):
            colour = _GLASS if edge in self.body.glass else self.paint
            canvas.fill_world(corners, np.multiply(colour, shade))
            if edge == 0:
                self._draw_rear(canvas, corners)
            elif edge == len(outline) - 2:
                self._draw_front(canvas, corners)
        # The camera's sideways position in the vehicle's frame says which side it sees.
        camera_side = -(sin * pose.x + cos * pose.z)
        if abs(camera_side) > width / 2:
            self._draw_side(canvas, pose, outline, math.copysign(1.0, camera_side))

    def _draw_tyres(self, canvas: Canvas, pose: Pose) -> None:
        _, width, length = self.size
        top = self.body.wheel * 1.2
        for axle in (self.body.axles[0], self.body.axles[-1]):
            for side in (-1, 1):
                outer, inner = side * 0.49 * width, side * 0.36 * width
                corners = ((0, outer), (top, outer), (top, inner), (0, inner))
                local = [(axle * length, *corner) for corner in corners]
                canvas.fill_world(pose.to_world(np.array(local)), _TYRE)

    def _draw_rear(self, canvas: Canvas, corners: np.ndarray) -> None:
        # The high door of a truck has its lights at the bottom.
        low = min(1.0, 0.8 / (corners[1, 1] - corners[0, 1]))
        for left in (0.03, 0.79):
            lamp = _patch(corners, left, 0.62 * low, left + 0.18, 0.92 * low)
            canvas.fill_world(lamp, (196, 18, 22))
        canvas.fill_world(_patch(corners, 0.36, 0.35 * low, 0.64, 0.58 * low), (225, 225, 215))
        canvas.fill_world(_patch(corners, 0, 0, 1, 0.16 * low), (45, 45, 48))

    def _draw_front(self, canvas: Canvas, corners: np.ndarray) -> None:
        # This edge runs downward: its lower end is at 1.
        for left in (0.04, 0.78):
            canvas.fill_world(_patch(corners, left, 0.12, left + 0.18, 0.38), (250, 246, 215))
        canvas.fill_world(_patch(corners, 0.27, 0.18, 0.73, 0.45), (34, 35, 38))
        canvas.fill_world(_patch(corners, 0.37, 0.6, 0.63, 0.78), (225, 225, 215))

    def _draw_side(self, canvas: Canvas, pose: Pose, outline: np.ndarray, side: float) -> None:
        height, width, length = self.size
        shade = canvas.light.shade((side * math.sin(pose.yaw), 0, side * math.cos(pose.yaw)))
        canvas.fill_world(pose.to_world(outline * (1, 1, side)), np.multiply(self.paint, shade))
        for window in self.body.windows:
            # Windows lean in with the roof.
            inset = np.interp(window[:, 1], (0.65, 1), (1, self.body.profile[3, 2]))
            local = np.column_stack([window * (length, height), side * inset * width / 2])
            canvas.fill_world(pose.to_world(local), np.multiply(_GLASS, shade))
        for axle in self.body.axles:
            for scale, colour in ((1.0, _TYRE), (0.58, np.multiply(_RIM, shade))):
                angle = np.linspace(0, 2 * np.pi, 13)[:-1]
                radius = self.body.wheel
                local = np.stack(
                    [
                        axle * length + scale * radius * np.cos(angle),
                        radius + scale * radius * np.sin(angle),
                        np.full(12, side * width / 2),
                    ],
                    axis=1,
                )
                canvas.fill_world(pose.to_world(local), colour)


def random_vehicle(rng: np.random.Generator) -> Vehicle:
    """Draws a vehicle: mostly cars, some vans and trucks."""
    kind = rng.choice(5, p=[0.31, 0.31, 0.24, 0.08, 0.06])
    body = (*CARS, VAN, TRUCK)[kind]
    size = tuple(float(s * f) for s, f in zip(body.size, rng.uniform(0.93, 1.07, 3)))
    paint = np.clip(np.array(choose(rng, _PAINTS)) + rng.normal(0, 8, 3), 8, 248)
    return Vehicle(body, size, paint)


def _patch(corners: np.ndarray, u1: float, v1: float, u2: float, v2: float) -> np.ndarray:
    """A part of a quadrilateral: u runs across the width, v along the profile, both 0 to 1."""
    a, b, c, d = corners
    points = [
        (1 - v) * ((1 - u) * a + u * d) + v * ((1 - u) * b + u * c)
        for u, v in ((u1, v1), (u1, v2), (u2, v2), (u2, v1))
    ]
    return np.array(points)
