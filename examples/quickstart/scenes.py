"""Synthetic road scenes in KITTI's layout, for a first distillation without any download.

Polygons on a road: cars, vans, pedestrians and cyclists between houses and trees, which hide each
other. The data sets `synthetic_road_train` and `synthetic_road_val` read what this writes.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from aid_d2.data.kitti import KittiObject, split_ids

# Raise when the same settings give other files than before.
RENDERER_VERSION = 2
# Below these an object is left out of the labels, as one that nobody could point at.
MIN_VISIBLE_FRACTION, MIN_VISIBLE_PIXELS = 0.12, 10

_NEAR, _FAR = 5.0, 45.0  # where objects stand, in meters
_LANE = 3.3  # width, in meters
_SKIN = ((224, 182, 150), (176, 124, 92), (110, 76, 58))
Shape = tuple[np.ndarray, np.ndarray]  # a polygon: points (N, 2) in pixels, and a color
# Length, width and height in meters, and the share of the height below the windows.
_VEHICLES = {"Car": ((4.1, 1.75, 1.5), 0.58), "Van": ((5.0, 2.0, 2.2), 0.55)}


@dataclass(frozen=True)
class SceneSet:
    """What a set is made from; equal settings give identical files.

    Attributes:
        images: number of scenes; four in five are for training.
        seed: of everything random. A scene depends on the seed and its own number alone.
        height, width: of the images in pixels.
    """

    images: int
    seed: int = 0
    height: int = 128
    width: int = 416

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ValueError(f"A set needs at least 2 images, not {self.images}.")
        if min(self.height, self.width) < 64:
            raise ValueError(f"Images must be at least 64 x 64, not {self.height} x {self.width}.")


def write_scene_set(output: Path, settings: SceneSet) -> bool:
    """Write `training/{image_2,label_2}` and `ImageSets` under a folder, and `meta.json` at last.

    A complete set of the same settings is left alone, an interrupted one is written anew.

    Returns:
        whether anything was written.

    Raises:
        FileExistsError: the folder holds something else.
    """
    meta_file, meta = output / "meta.json", {"version": RENDERER_VERSION, **asdict(settings)}
    found = json.loads(meta_file.read_text()) if meta_file.is_file() else None
    if found == {**meta, "complete": True}:
        return False
    unfinished = {**meta, "complete": False}
    if output.exists() and found != unfinished and any(output.iterdir()):
        raise FileExistsError(
            f"{output} holds {'a set of other settings' if found else 'other files'}: choose an "
            "empty directory, or remove it first."
        )
    names = "training/image_2", "training/label_2", "ImageSets"
    images, labels, splits = map(output.joinpath, names)
    for folder in (images, labels, splits):
        folder.mkdir(parents=True, exist_ok=True)
    meta_file.write_text(json.dumps(unfinished))
    ids = [f"{i:06d}" for i in range(settings.images)]
    for split, listed in zip(("train", "val"), split_ids(ids, 0.8, settings.seed)):
        (splits / f"{split}.txt").write_text("".join(f"{x}\n" for x in listed))
    for i, frame in enumerate(tqdm(ids, desc=f"Rendering {output}", disable=None)):
        rng = np.random.default_rng([settings.seed, i])
        image, objects = render_scene(rng, settings.height, settings.width)
        if not cv2.imwrite(str(images / f"{frame}.png"), image[..., ::-1]):
            raise OSError(f"Cannot write {images / f'{frame}.png'}.")
        (labels / f"{frame}.txt").write_text("".join(f"{label_line(x)}\n" for x in objects))
    meta_file.write_text(json.dumps({**meta, "complete": True}))
    return True


def label_line(obj: KittiObject) -> str:
    """The object as a line of a KITTI label file."""
    numbers = (*obj.bbox, *obj.dimensions, *obj.location, obj.rotation_y)
    head = f"{obj.type} {obj.truncated:.2f} {obj.occluded} {obj.alpha:.2f}"
    return " ".join([head, *(f"{x:.2f}" for x in numbers)])


@dataclass(frozen=True)
class Camera:
    """KITTI's, scaled to the width of the image; it looks along z, x is to the right."""

    width: int
    height: int
    horizon: float
    elevation: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of points (..., 3): x, height above the ground and z > 0, in meters."""
        x, y, z = np.moveaxis(np.asarray(points, float), -1, 0)
        scale = 0.58 * self.width / z
        pixels = self.width / 2 + scale * x, self.horizon + scale * (self.elevation - y)
        return np.stack(pixels, axis=-1)


@dataclass(frozen=True)
class Actor:
    """Something on the ground; x, z and the size are in meters."""

    type: str  # of KITTI, or empty for a thing without a label
    size: tuple[float, float, float]  # length, width, height
    x: float
    z: float
    yaw: float  # around the vertical, 0 to the right
    shapes: list[Shape]  # the first one at the back


def render_scene(
    rng: np.random.Generator, height: int = 128, width: int = 416
) -> tuple[np.ndarray, list[KittiObject]]:
    """Draw one random road scene.

    A box spans the whole object, hidden parts included, clipped to the image, as in KITTI.
    `truncated` compares it with the unclipped one. `occluded` tells the share of the object's
    pixels that others cover: 0 under .1, 1 under .4, 2 under .7, else 3.

    Args:
        rng: source of all randomness; equally seeded generators give identical scenes.
        height, width: of the image in pixels.

    Returns:
        (height, width, 3) RGB image, uint8, and its objects, nearest last.
    """
    camera = Camera(width, height, height * rng.uniform(0.38, 0.46), rng.uniform(1.5, 1.8))
    half_road = _LANE * rng.integers(2, 5) / 2 + rng.uniform(0.2, 1.5)
    center = -_LANE / 2 + rng.uniform(-1, 1)
    light = rng.uniform(0.6, 1.1)
    image = _background(rng, camera, center, half_road)
    actors = _place(rng, camera, center, half_road)
    owner = np.zeros((height, width), np.int32)
    areas = {}
    for number, actor in enumerate(sorted(actors, key=lambda x: -x.z), start=1):
        own = np.zeros((height, width), np.uint8)
        for points, color in actor.shapes:
            # Fog: what is far takes on the color of the air.
            faded = 205 + (np.asarray(color) * light - 205) * math.exp(-0.008 * actor.z)
            fixed = [np.round(points * 16).astype(np.int32)]
            cv2.fillPoly(image, fixed, np.clip(faded, 0, 255).tolist(), cv2.LINE_AA, shift=4)
            cv2.fillPoly(own, fixed, 1, shift=4)
        owner[own > 0] = number
        areas[number] = actor, int(own.sum())
    objects = [
        label
        for number, (actor, area) in areas.items()
        if actor.type and (label := _label(camera, actor, area, int((owner == number).sum())))
    ]
    noise = rng.normal(0, 5, image.shape) + rng.normal(0, 6)
    return np.clip(image + noise, 0, 255).astype(np.uint8), objects


def _label(camera: Camera, actor: Actor, area: int, visible: int) -> KittiObject | None:
    points = np.concatenate([points for points, _ in actor.shapes])
    low, high = points.min(0), points.max(0)
    inside_low, inside_high = (np.clip(x, 0, (camera.width, camera.height)) for x in (low, high))
    # `area` counts pixels in the image alone.
    if visible < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * area):
        return None
    length, width, height = actor.size
    return KittiObject(
        actor.type,
        truncated=float(1 - np.prod(inside_high - inside_low) / np.prod(high - low)),
        occluded=int(np.searchsorted((0.1, 0.4, 0.7), 1 - visible / area, side="right")),
        alpha=actor.yaw - math.atan2(actor.x, actor.z),
        bbox=(*map(float, inside_low), *map(float, inside_high)),
        dimensions=(height, width, length),
        location=(actor.x, camera.elevation, actor.z),
        rotation_y=actor.yaw,
    )


def _background(rng, camera: Camera, center: float, half_road: float) -> np.ndarray:
    """Sky, grass, pavement and road with dashes, as a float32 image (H, W, 3)."""
    rows = np.linspace(0, 1, camera.height)[:, None, None]
    top, bottom = rng.uniform((90, 130, 170), (170, 170, 215)), np.array([205, 212, 216])
    image = np.broadcast_to(top + (bottom - top) * rows * 2.2, (camera.height, camera.width, 3))
    image = np.clip(image, 0, 235).astype(np.float32)
    ground = rng.uniform((80, 95, 60), (125, 130, 95))
    image[int(camera.horizon) :] = ground

    def strip(low: float, high: float, near: float, far: float, color) -> None:
        corners = [(low, 0, near), (high, 0, near), (high, 0, far), (low, 0, far)]
        points = camera.project(np.array(corners) + (center, 0, 0))
        cv2.fillPoly(image, [np.round(points * 16).astype(np.int32)], color, cv2.LINE_AA, shift=4)

    gray = rng.uniform(75, 115)
    strip(-half_road - 2.5, half_road + 2.5, 1.0, 400, (gray + 45, gray + 42, gray + 38))
    strip(-half_road, half_road, 1.0, 400, (gray, gray, gray + 4))
    phase = rng.uniform(0, 6)
    for offset in np.arange(_LANE - half_road, half_road - 1, _LANE):
        for start in np.arange(2 + phase, 60, 6):
            strip(offset - 0.08, offset + 0.08, start, start + 3, (225, 225, 220))
    return image


def _place(rng, camera: Camera, center: float, half_road: float) -> list[Actor]:
    """Vehicles in lanes, at the curb and across; people beside the road and on it."""
    actors: list[Actor] = []

    def add(build, x: float, z: float, yaw: float, room: float) -> None:
        if all(math.hypot(x - other.x, z - other.z) > room + other.size[0] / 2 for other in actors):
            actors.append(build(rng, camera, x, z, yaw))

    def depth() -> float:  # as many objects between 5 and 10 meters as between 20 and 40
        return math.exp(rng.uniform(math.log(_NEAR), math.log(_FAR)))

    for _ in range(rng.integers(2, 10)):
        side = rng.choice([-1, 1])
        yaw = rng.choice([-1, 1]) * math.pi / 2 + rng.normal(0, 0.06)
        x = center + side * rng.uniform(0, half_road + 1)
        if rng.random() < 0.15:
            yaw += math.pi / 2 + rng.normal(0, 0.3)
        kind = "Van" if rng.random() < 0.15 else "Car"
        add(lambda *a, kind=kind: _vehicle(kind, *a), x, depth() + 3, yaw, 2.2)
    for _ in range(rng.integers(1, 9)):
        reach = (
            rng.uniform(0, half_road) if rng.random() < 0.25 else half_road + rng.uniform(0.2, 3)
        )
        x, z, yaw = center + rng.choice([-1, 1]) * reach, depth(), rng.uniform(0, 2 * math.pi)
        add(_cyclist if rng.random() < 0.4 else _pedestrian, x, z, yaw, 0.8)
    for side in (-1, 1):
        for z in np.arange(rng.uniform(8, 20), 110, rng.uniform(11, 20)):
            if rng.random() < 0.75:
                x = center + side * (half_road + rng.uniform(8, 14))
                add(_house, x, z, math.pi / 2, 0.0)
            if rng.random() < 0.5:
                x = center + side * (half_road + rng.uniform(2.6, 6))
                add(_tree, x, z + rng.uniform(0, 8), 0.0, 0.5)
    return actors


def _box(camera: Camera, x, z, yaw, low, high, color) -> list[Shape]:
    """The visible faces of a box, given by two corners (along, height, across) in its own frame."""
    along = np.array([math.cos(yaw), 0, -math.sin(yaw)])
    across = np.array([math.sin(yaw), 0, math.cos(yaw)])
    axes, eye, shapes = np.stack([along, (0, 1, 0), across]), (0, camera.elevation, 0), []
    middle, half = np.add(low, high) / 2, np.subtract(high, low) / 2
    for axis, shade in enumerate((0.72, 1.12, 0.9)):
        for sign in (-1, 1):
            corners = np.insert([(-1, -1), (-1, 1), (1, 1), (1, -1)], axis, sign, axis=1)
            world = (middle + half * corners) @ axes + (x, 0, z)
            if sign * np.dot(axes[axis], np.subtract(eye, world[0])) > 0:
                world[:, 2] = world[:, 2].clip(min=0.8)
                shapes.append((camera.project(world), np.asarray(color) * shade))
    return shapes


def _vehicle(kind: str, rng, camera: Camera, x, z, yaw) -> Actor:
    size, waist = _VEHICLES[kind]
    length, width, height = size = tuple(s * rng.uniform(0.92, 1.08) for s in size)
    paint = np.clip(rng.uniform(20, 235) + rng.normal(0, 45, 3), 8, 245)
    belt, roof, long, half = waist * height, 0.95 * height, length / 2, width / 2
    parts = [
        ((-long, 0.12, -half), (long, 0.35, half), (28, 28, 30)),  # wheels and shadow
        ((-long, 0.35, -half), (long, belt, half), paint),
        ((-0.72 * long, belt, -0.9 * half), (0.44 * long, roof, 0.9 * half), (52, 62, 74)),
        ((-0.68 * long, roof, -0.88 * half), (0.4 * long, height, 0.88 * half), paint),
    ]
    shapes = [face for part in parts for face in _box(camera, x, z, yaw, *part)]
    return Actor(kind, size, x, z, yaw, shapes)


def _flat(camera: Camera, x, z, polygons: list[tuple]) -> list[Shape]:
    """Polygons that face the camera, their points (to the right, up) in meters."""
    return [
        (camera.project([(x + right, up, z) for right, up in points]), np.asarray(color, float))
        for points, color in polygons
    ]


def _ellipse(right: float, up: float, a: float, b: float) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    return [(right + a * math.cos(t), up + b * math.sin(t)) for t in angles]


def _limb(start: tuple, end: tuple, width: float) -> list[np.ndarray]:
    x, y = np.subtract(end, start)
    aside = width / 2 * np.array([-y, x]) / math.hypot(x, y)
    return [start + aside, end + aside, end - aside, start - aside]


def _body(rng, height: float, hip: tuple, lean: float, feet: list[tuple]) -> list[tuple]:
    """Legs, torso, arms and head of a person; `lean` moves the shoulders, in meters."""
    trousers, shirt = rng.uniform(20, 210, (2, 1)) + rng.normal(0, 40, (2, 3))
    shoulder = (hip[0] + lean, hip[1] + 0.32 * height)
    hands = [(shoulder[0] + s * rng.uniform(0.1, 0.3), hip[1] + 0.05) for s in (-1, 1)]
    return [
        *((_limb(hip, foot, 0.16), trousers) for foot in feet),
        *((_limb(shoulder, hand, 0.1), shirt * 0.85) for hand in hands),
        (_limb(hip, shoulder, 0.42), shirt),
        (_ellipse(shoulder[0], shoulder[1] + 0.12 * height, 0.1, 0.13), _SKIN[rng.integers(3)]),
    ]


def _pedestrian(rng, camera: Camera, x, z, yaw) -> Actor:
    height, stride = rng.uniform(1.5, 1.9), rng.uniform(0, 0.3) * abs(math.cos(yaw))
    feet = [(-stride - 0.06, 0.0), (stride + 0.06, 0.0)]
    body = _body(rng, height, (0.0, 0.49 * height), 0.0, feet)
    return Actor("Pedestrian", (0.7, 0.6, height), x, z, yaw, _flat(camera, x, z, body))


def _cyclist(rng, camera: Camera, x, z, yaw) -> Actor:
    # Seen from behind a bicycle is narrow, from the side it is wide.
    spread, height = 0.12 + 0.45 * abs(math.cos(yaw)), rng.uniform(1.65, 1.85)
    ahead = math.copysign(1.0, math.cos(yaw))
    wheels = [_ellipse(s * spread, 0.34, 0.34 * spread / 0.57, 0.34) for s in (-1, 1)]
    hubs = [_ellipse(s * spread, 0.34, 0.25 * spread / 0.57, 0.25) for s in (-1, 1)]
    frame = rng.uniform(30, 220, 3)
    hip = (-0.25 * ahead * spread, 0.52 * height)
    feet = [(0.1 * ahead * spread, 0.2), (0.15 * ahead * spread, 0.42)]
    parts = [
        *zip([*wheels, *hubs], [(24, 24, 26)] * 2 + [(150, 150, 150)] * 2),
        (_limb((-spread, 0.34), (spread, 0.75), 0.09), frame),
        (_limb((spread * ahead, 0.34), (0.75 * spread * ahead, 0.95), 0.08), frame),
        *_body(rng, height, hip, 0.5 * ahead * spread, feet),
    ]
    return Actor("Cyclist", (1.8, 0.6, height), x, z, yaw, _flat(camera, x, z, parts))


def _house(rng, camera: Camera, x, z, yaw) -> Actor:
    length, width, height = size = rng.uniform(6, 14), rng.uniform(6, 9), rng.uniform(4, 11)
    low, high = (-length / 2, 0, -width / 2), (length / 2, height, width / 2)
    z, wall = max(z, width), rng.uniform(90, 190) + rng.normal((8, 0, -8), 8)
    return Actor("", size, x, z, yaw, _box(camera, x, z, yaw, low, high, wall))


def _tree(rng, camera: Camera, x, z, yaw) -> Actor:
    height, green = rng.uniform(3, 6), rng.uniform((30, 60, 20), (90, 120, 60))
    crown = [_ellipse(rng.normal(0, 0.4), height * f, 1.1, 1.2) for f in (0.7, 0.85, 1.0)]
    polygons = [(_limb((0, 0), (0, 0.7 * height), 0.3), (88, 68, 50)), *zip(crown, [green] * 3)]
    return Actor("", (1.0, 1.0, height), x, z, yaw, _flat(camera, x, z, polygons))
