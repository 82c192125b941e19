"""Things along the road that are no objects, though some look like one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, Pose, choose
from .people import Figure, random_bicycle

_WHITE = (238, 238, 232)
_GREENS = ((52, 92, 44), (74, 110, 50), (96, 124, 58), (120, 118, 52), (44, 78, 58))


@dataclass(frozen=True)
class Prop:
    """A thing that is drawn by `draw(canvas, pose)`, `footprint` metres wide on the ground."""

    footprint: float
    draw: Callable[[Canvas, Pose], None]


def draw_box(canvas: Canvas, pose: Pose, size: tuple[float, float, float], colour) -> None:
    """Draws a cuboid of (height, width along x, length along z) in metres, aligned to the axes."""
    height, width, length = size
    x1, x2 = pose.x - width / 2, pose.x + width / 2
    z1, z2 = pose.z - length / 2, pose.z + length / 2
    light = canvas.light
    if height < canvas.camera.elevation:
        top = np.array([(x1, height, z1), (x1, height, z2), (x2, height, z2), (x2, height, z1)])
        canvas.fill_world(top, np.multiply(colour, light.shade((0, 1, 0))))
    for x, side in ((x1, -1), (x2, 1)):
        if side * -x > 0:
            wall = np.array([(x, 0, z1), (x, height, z1), (x, height, z2), (x, 0, z2)])
            canvas.fill_world(wall, np.multiply(colour, light.shade((side, 0, 0))))
    front = np.array([(x1, 0, z1), (x1, height, z1), (x2, height, z1), (x2, 0, z1)])
    canvas.fill_world(front, np.multiply(colour, light.shade((0, 0, -1))))


def _foliage(figure: Figure, rng: np.random.Generator, centre, spread, radius, count) -> None:
    base = np.array(choose(rng, _GREENS))
    tones = np.linspace(0.65, 1.15, count)
    offsets = rng.uniform(-1, 1, (count, 2)) * spread
    sizes = radius * rng.uniform(0.6, 1.1, count)
    for tone, (dx, dy), size in zip(tones, offsets, sizes):
        figure.ball((centre[0] + dx, centre[1] + dy, 0), size, base * tone)


def _tree(rng: np.random.Generator) -> Prop:
    height, state = rng.uniform(3.5, 7), rng.integers(1 << 31)

    def draw(canvas: Canvas, pose: Pose) -> None:
        figure = Figure(canvas, Pose(pose.x, pose.z))
        figure.limb((0, 0, 0), (0.1, 0.6 * height, 0), 0.34, (78, 62, 48), taper=0.6)
        own = np.random.default_rng(state)
        _foliage(figure, own, (0, 0.72 * height), (0.9, 0.2 * height), 0.17 * height, 7)

    return Prop(0.8, draw)


def _bush(rng: np.random.Generator) -> Prop:
    height, width, state = rng.uniform(0.8, 1.7), rng.uniform(0.5, 1.8), rng.integers(1 << 31)

    def draw(canvas: Canvas, pose: Pose) -> None:
        figure = Figure(canvas, Pose(pose.x, pose.z))
        own = np.random.default_rng(state)
        _foliage(figure, own, (0, 0.5 * height), (0.6 * width, 0.2 * height), 0.38 * height, 6)

    return Prop(width, draw)


def _pole(rng: np.random.Generator) -> Prop:
    """A street lamp or a plain post."""
    height, arm = rng.uniform(2.5, 6.5), rng.uniform(0.6, 1.4) * (1 if rng.random() < 0.5 else -1)
    grey = rng.uniform(50, 140)

    def draw(canvas: Canvas, pose: Pose) -> None:
        figure = Figure(canvas, Pose(pose.x, pose.z))
        figure.limb((0, 0, 0), (0, height, 0), 0.16, (grey, grey, grey + 6), taper=0.6)
        if height > 4:
            figure.limb((0, height, 0), (arm, height + 0.15, 0), 0.1, (grey, grey, grey + 6))
            lamp = ((arm, height + 0.12, 0), (1.4 * arm, height + 0.12, 0))
            figure.limb(*lamp, 0.2, (220, 215, 190))

    return Prop(0.4, draw)


def _sign(rng: np.random.Generator) -> Prop:
    """A round or square traffic sign: from afar a person's head and body."""
    height, shape = rng.uniform(1.9, 2.6), rng.integers(3)
    colour = choose(rng, [(200, 30, 34), (28, 72, 170), (240, 240, 236), (236, 190, 40)])

    def draw(canvas: Canvas, pose: Pose) -> None:
        figure = Figure(canvas, Pose(pose.x, pose.z))
        figure.limb((0, 0, 0), (0, height, 0), 0.08, (132, 134, 138))
        if shape == 0:
            figure.ball((0, height, 0), 0.34, colour)
            figure.ball((0, height, 0), 0.22, _WHITE)
        elif shape == 1:
            figure.limb((0, height - 0.3, 0), (0, height + 0.35, 0), 0.6, _WHITE)
            figure.limb((0, height - 0.24, 0), (0, height + 0.29, 0), 0.48, colour)
        else:
            figure.limb((0, height - 0.3, 0), (0, height + 0.4, 0), 0.8, colour, taper=0.02)
            figure.limb((0, height - 0.22, 0), (0, height + 0.22, 0), 0.5, _WHITE, taper=0.02)

    return Prop(0.4, draw)


def _post_box(rng: np.random.Generator) -> Prop:
    """A pillar, bin or parking machine of a person's height."""
    height, width = rng.uniform(1.1, 1.8), rng.uniform(0.4, 0.65)
    colour = choose(rng, [(190, 30, 36), (236, 196, 40), (60, 64, 70), (40, 90, 70), (36, 60, 120)])

    def draw(canvas: Canvas, pose: Pose) -> None:
        draw_box(canvas, pose, (height, width, width), colour)
        figure = Figure(canvas, Pose(pose.x, pose.z - width / 2))
        figure.limb((0, 0.7 * height, 0), (0, 0.78 * height, 0), 0.6 * width, (24, 24, 26))

    return Prop(width, draw)


def _container(rng: np.random.Generator) -> Prop:
    """A skip or crate as large as a car, with stripes where a car has windows."""
    size = (rng.uniform(1.1, 1.8), rng.uniform(1.5, 2.0), rng.uniform(2.0, 4.2))
    colour = choose(
        rng, [(150, 52, 40), (46, 84, 130), (190, 150, 60), (96, 100, 104), (60, 96, 72)]
    )
    striped = rng.random() < 0.5

    def draw(canvas: Canvas, pose: Pose) -> None:
        draw_box(canvas, pose, size, colour)
        if striped:
            near = pose.z - size[2] / 2
            figure = Figure(canvas, Pose(pose.x, near))
            for up in (0.3, 0.62):
                start, end = (-0.42 * size[1], up * size[0], 0), (0.42 * size[1], up * size[0], 0)
                figure.limb(start, end, 0.14 * size[0], np.multiply(colour, 0.5))

    return Prop(max(size[1:]), draw)


def _fence(rng: np.random.Generator) -> Prop:
    """Panels along the road."""
    height, length = rng.uniform(0.9, 1.7), rng.uniform(4, 9)
    colour = choose(rng, [(120, 92, 66), (200, 200, 194), (96, 100, 96), (72, 84, 72)])
    count = int(length / rng.uniform(0.7, 1.5))

    def draw(canvas: Canvas, pose: Pose) -> None:
        shade = canvas.light.shade((-np.sign(pose.x), 0, 0))
        edges = np.linspace(pose.z + length / 2, pose.z - length / 2, count + 1)
        slats = []
        for far, near in zip(edges[:-1], edges[1:]):
            near += 0.25 * (far - near)
            corners = [(far, 0.1), (far, height), (near, height), (near, 0.1)]
            world = np.array([(pose.x, up, z) for z, up in corners])
            slats.append(canvas.camera.project(world))
        canvas.fill(slats, np.multiply(colour, shade), pose.z)
        for up in (0.3, 0.8):
            corners = [(edges[0], 0), (edges[0], 0.12), (edges[-1], 0.12), (edges[-1], 0)]
            world = np.array([(pose.x, up * height + rise, z) for z, rise in corners])
            canvas.fill_world(world, np.multiply(colour, 0.8 * shade))

    return Prop(length, draw)


def _parked_bicycle(rng: np.random.Generator) -> Prop:
    bicycle, yaw = random_bicycle(rng), rng.uniform(-np.pi, np.pi)

    def draw(canvas: Canvas, pose: Pose) -> None:
        bicycle.draw(canvas, Pose(pose.x, pose.z, yaw))

    return Prop(0.8, draw)


def _cone(rng: np.random.Generator) -> Prop:
    height = rng.uniform(0.6, 0.95)

    def draw(canvas: Canvas, pose: Pose) -> None:
        figure = Figure(canvas, Pose(pose.x, pose.z))
        figure.limb((-0.24, 0.03, 0), (0.24, 0.03, 0), 0.06, (44, 44, 46))
        figure.limb((0, 0.05, 0), (0, height, 0), 0.36, (226, 92, 30), taper=0.15)
        figure.limb((0, 0.45 * height, 0), (0, 0.65 * height, 0), 0.22, (240, 240, 236), taper=0.75)

    return Prop(0.5, draw)


_MAKERS = (_tree, _bush, _pole, _sign, _post_box, _container, _fence, _parked_bicycle, _cone)
_WEIGHTS = (0.18, 0.14, 0.14, 0.14, 0.12, 0.08, 0.1, 0.06, 0.04)


def random_prop(rng: np.random.Generator) -> Prop:
    return _MAKERS[rng.choice(len(_MAKERS), p=_WEIGHTS)](rng)
