"""A whole road scene: sky, houses, road, things and objects, seen by a camera."""

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from ..kitti import KittiObject
from .canvas import Camera, Canvas, Light, Pose, choose
from .people import Cyclist, Person, random_cyclist, random_person
from .props import Prop, draw_box, random_prop
from .vehicles import Vehicle, random_vehicle

# Below these an object is left out of the labels, as one nobody could point at.
MIN_VISIBLE_FRACTION = 0.12
MIN_VISIBLE_PIXELS = 10

_NEAR, _FAR = 5.0, 48.0  # where objects stand, in metres
_LANE = 3.3
_PAVEMENT = 2.6  # widths, in metres
_WALLS = ((170, 120, 96), (206, 192, 164), (156, 158, 162), (188, 170, 150), (128, 84, 70))
_CAMERA_HEIGHTS = (1.5, 1.8)

Actor = Vehicle | Person | Cyclist


@dataclass(frozen=True)
class _Road:
    """The camera drives in the right lane; `curve` bends all by curve * z^2 metres.

    Attributes:
        centre: of the road at the camera, metres to the right.
        half_width: in metres.
        curve: in 1/metres.
        phase: of the dashes, in metres.
    """

    centre: float
    half_width: float
    curve: float
    phase: float

    def x(self, offset: float, z: float) -> float:
        return self.centre + offset + self.curve * z * z


def render_scene(
    rng: np.random.Generator, height: int = 128, width: int = 416
) -> tuple[np.ndarray, list[KittiObject]]:
    """Draws one random road scene.

    Objects are drawn from far to near. A box spans the whole object, hidden parts included, clipped
    to the image, as in KITTI; `truncated` compares it with the unclipped one; `occluded` tells the
    share of the object's pixels that others cover: 0 under .1, 1 under .4, 2 under .7, else 3.
    Vans and trucks are labelled as such, and so are ignore regions of the three-class sets.

    Args:
        rng: source of all randomness; equally seeded generators give identical scenes.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        (height, width, 3) RGB image, uint8, and its objects, nearest last.
    """
    # KITTI's camera, scaled to this width.
    elevation = rng.uniform(*_CAMERA_HEIGHTS)
    camera = Camera(width, height, 0.58 * width, height * rng.uniform(0.4, 0.48), elevation)
    light, sky = _weather(rng)
    lanes = int(rng.choice([2, 2, 3, 4]))
    half_width = lanes * _LANE / 2 + rng.uniform(0.2, 1.8)
    curve = rng.normal(0, 0.0008)
    road = _Road(_LANE / 2 - lanes * _LANE / 2, half_width, curve, rng.uniform(0, 6))

    actors = _place_actors(rng, road, lanes)
    props = _place_props(rng, road, [pose for _, pose in actors])

    image = np.empty((height, width, 3), np.float32)
    _paint_sky(rng, image, camera, sky)
    _paint_ground(rng, image, camera, road, light, lanes)
    _cast_shadows(image, camera, light, actors)
    canvas = Canvas(camera, light, np.clip(image, 0, 255).astype(np.uint8))
    _paint_skyline(rng, canvas)
    _paint_houses(rng, canvas, road)
    objects = _draw_far_to_near(canvas, actors, props)
    return _photograph(rng, canvas.image), objects


def _weather(rng: np.random.Generator) -> tuple[Light, np.ndarray]:
    """Returns the light, and the sky's colours at the zenith and the horizon, (2, 3)."""
    kind = rng.choice(4, p=[0.4, 0.3, 0.18, 0.12])
    zenith, horizon, ambient, haze = (
        ((92, 142, 206), (196, 216, 232), 0.55, 0.003),  # clear
        ((150, 158, 168), (206, 208, 210), 0.82, 0.006),  # overcast
        ((84, 92, 140), (238, 184, 138), 0.6, 0.005),  # low sun
        ((186, 190, 192), (212, 214, 214), 0.9, 0.022),  # fog
    )[kind]
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 0.85)
    level = math.sqrt(1 - height**2)
    direction = np.array([level * math.cos(azimuth), height, level * math.sin(azimuth)])
    colours = np.array([zenith, horizon], float) + rng.normal(0, 6, (1, 3))
    light = Light(direction, ambient, np.clip(colours[1], 0, 255), haze * rng.uniform(0.6, 1.5))
    return light, colours


def _place_actors(rng: np.random.Generator, road: _Road, lanes: int) -> list[tuple[Actor, Pose]]:
    """Puts vehicles in lanes, at the kerb and across; people on pavements and crossings."""
    placed: list[tuple[Actor, Pose]] = []

    def add(actor: Actor, offset: float, z: float, yaw: float) -> None:
        pose = Pose(road.x(offset, z), z, yaw + rng.normal(0, 0.06))
        if not any(_overlap(actor, pose, other, at) for other, at in placed):
            placed.append((actor, pose))

    away, towards = -np.pi / 2, np.pi / 2
    for _ in range(rng.integers(2, 10)):
        vehicle, z = random_vehicle(rng), _depth(rng)
        manner = rng.random()
        if manner < 0.5:
            lane = rng.integers(lanes)
            yaw = away if lane >= lanes / 2 else towards
            add(vehicle, (lane + 0.5 - lanes / 2) * _LANE + rng.normal(0, 0.25), z, yaw)
        elif manner < 0.85:
            side = rng.choice([-1, 1])
            yaw = away if rng.random() < 0.7 else towards
            add(vehicle, side * (road.half_width + rng.uniform(-0.9, 1.2)), z, yaw)
        else:
            crossing = rng.choice([0, np.pi]) + rng.normal(0, 0.35)
            add(vehicle, rng.uniform(-1.3, 1.3) * road.half_width, max(z, 11), crossing)
    for _ in range(rng.integers(0, 7)):
        on_road = rng.random() < 0.25
        if on_road:
            reach = rng.uniform(0, road.half_width)
        else:
            reach = road.half_width + rng.uniform(0.3, 3)
        yaw = rng.choice([0, np.pi]) if on_road else rng.choice([away, towards])
        side = rng.choice([-1, 1])
        person, z = random_person(rng), _depth(rng)
        yaw += rng.normal(0, 0.6)
        add(person, side * reach, z, yaw)
        if rng.random() < 0.3:  # a companion
            aside = side * reach + rng.uniform(0.5, 0.9)
            add(random_person(rng), aside, z + rng.uniform(-1, 1), yaw)
    for _ in range(rng.integers(0, 4)):
        side = rng.choice([-1, 1])
        yaw = (away if side > 0 else towards) + rng.normal(0, 0.5)
        if rng.random() < 0.3:
            yaw = rng.choice([0, np.pi]) + rng.normal(0, 0.3)
        offset = side * (road.half_width + rng.uniform(-1.5, 1.5))
        add(random_cyclist(rng), offset, _depth(rng), yaw)
    return placed


def _depth(rng: np.random.Generator) -> float:
    return float(_NEAR + (_FAR - _NEAR) * rng.beta(1.1, 1.7))


def _overlap(actor: Actor, pose: Pose, other: Actor, at: Pose) -> bool:
    """Whether two objects would stand in each other; across a lane they may pass closely."""
    gap_x, gap_z = abs(pose.x - at.x), abs(pose.z - at.z)
    extents = [_extent(a, p) for a, p in ((actor, pose), (other, at))]
    return gap_x < sum(e[0] for e in extents) / 2 and gap_z < sum(e[1] for e in extents) / 2


def _extent(actor: Actor, pose: Pose) -> tuple[float, float]:
    """Size along x and z in metres."""
    _, width, length = actor.size
    cos, sin = abs(math.cos(pose.yaw)), abs(math.sin(pose.yaw))
    return length * cos + width * sin, length * sin + width * cos


def _place_props(
    rng: np.random.Generator, road: _Road, taken: list[Pose]
) -> list[tuple[Prop, Pose]]:
    placed = []
    for _ in range(rng.integers(8, 20)):
        prop = random_prop(rng)
        z = float(rng.uniform(_NEAR + 1 + prop.footprint / 2, _FAR + 10))
        offset = road.half_width + rng.uniform(0.7, 7) + 0.3 * prop.footprint
        pose = Pose(road.x(rng.choice([-1, 1]) * offset, z), z)
        near_x, near_z = 1.0 + min(prop.footprint, 2) / 2, 1.2 + prop.footprint / 2
        if not any(abs(t.x - pose.x) < near_x and abs(t.z - z) < near_z for t in taken):
            placed.append((prop, pose))
    return placed


@cache
def _texture(size: int) -> np.ndarray:
    """A (size, size) periodic pattern of several scales, about -1 to 1; always the same."""
    rng = np.random.default_rng(0)
    pattern = np.zeros((size, size), np.float32)
    for octave in (1, 4, 16):
        noise = rng.standard_normal((size // octave, size // octave)).astype(np.float32)
        # Wrapped before enlarging, so that it tiles.
        noise = np.pad(noise, 2, mode="wrap")
        large = cv2.resize(noise, None, fx=octave, fy=octave, interpolation=cv2.INTER_CUBIC)
        pattern += large[2 * octave : -2 * octave, 2 * octave : -2 * octave]
    return pattern / 3


def _paint_sky(rng: np.random.Generator, image, camera: Camera, sky: np.ndarray) -> None:
    rows = int(math.ceil(camera.horizon)) + 1
    blend = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** 1.4
    image[:rows] = (1 - blend) * sky[0] + blend * sky[1]
    clouds = rng.standard_normal((4, 9)).astype(np.float32)
    clouds = cv2.resize(clouds, (camera.width, rows), interpolation=cv2.INTER_CUBIC)
    cover = np.clip(clouds - rng.uniform(0, 1.5), 0, 1)[..., None] * 0.6
    image[:rows] += cover * (np.float32(240) - image[:rows])


def _paint_ground(
    rng: np.random.Generator, image, camera: Camera, road: _Road, light: Light, lanes: int
) -> None:
    """Fills the rows under the horizon: verge, pavement, road with its texture and lane marks."""
    first = int(math.ceil(camera.horizon)) + 1
    v, u = np.mgrid[first : camera.height, : camera.width].astype(np.float32)
    z = camera.focal * camera.elevation / (v - camera.horizon)
    metres = z / camera.focal  # per pixel
    x = (u - camera.width / 2) * metres - road.centre - road.curve * z * z

    def inside(distance: np.ndarray) -> np.ndarray:
        """Share of a pixel within an edge, `distance` metres away: an anti-aliased mask."""
        return np.clip(distance / metres + 0.5, 0, 1)[..., None]

    def texture(scale: float) -> np.ndarray:
        tile = _texture(256)
        wrapped = ((x + 500) * scale % 256, z * scale % 256)
        sampled = cv2.remap(tile, *wrapped, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return (sampled / (1 + metres * scale * 0.6))[..., None]

    def tone(colour, low: float = 0.9, high: float = 1.1) -> np.ndarray:
        return np.float32(colour) * np.float32(rng.uniform(low, high))

    verge = tone(choose(rng, [(92, 116, 62), (122, 112, 84), (150, 146, 138)]))
    pavement = tone((164, 160, 154), 0.75, 1.1)
    tarmac = tone((98, 98, 102), 0.65, 1.25)
    fine, coarse = texture(28.0), texture(5.0)
    ground = verge + 30 * coarse + 14 * fine

    flags = np.minimum(z % 1.2, np.abs(x) % 1.2)
    slab = pavement + 10 * fine - 26 * inside(0.04 - flags) / (1 + 8 * metres[..., None])
    ground += inside(road.half_width + _PAVEMENT - np.abs(x)) * (slab - ground)
    kerb = inside(road.half_width + 0.22 - np.abs(x))
    ground += kerb * (1.12 * pavement - ground)
    surface = tarmac + 9 * fine + 13 * coarse
    ground += inside(road.half_width - np.abs(x)) * (surface - ground)

    white = tone((226, 224, 214), 0.8, 1.05)
    dashes = inside(1.5 - np.abs((z + road.phase) % 6 - 3))
    for i in range(1, lanes):
        line = inside(0.08 - np.abs(x - (i - lanes / 2) * _LANE))
        solid = 2 * i == lanes and lanes == 4
        ground += (line if solid else line * dashes) * (white - ground)
    if rng.random() < 0.6:
        edge = inside(0.07 - np.abs(np.abs(x) - road.half_width + 0.35))
        ground += edge * (white - ground)
    if rng.random() < 0.3:  # a zebra crossing
        at, stripes = rng.uniform(9, 28), inside(0.28 - np.abs(x % 1.1 - 0.55))
        zebra = stripes * inside(1.5 - np.abs(z - at)) * inside(road.half_width - 0.3 - np.abs(x))
        ground += zebra * (white - ground)

    ground *= light.shade((0, 1, 0))
    kept = np.exp(-light.haze * z)[..., None]
    haze = np.float32(light.haze_colour)
    image[first:] = haze + kept * (ground - haze)


def _cast_shadows(image, camera: Camera, light: Light, actors: list[tuple[Actor, Pose]]) -> None:
    """Darkens the ground under objects, and away from the sun where it shines."""
    mask = np.zeros(image.shape[:2], np.uint8)
    sun = 1 - light.ambient
    offset = -light.direction[[0, 2]] / light.direction[1] * min(1, 2.5 * sun)
    for actor, pose in actors:
        height, width, length = actor.size
        if isinstance(actor, Person):
            width = length = 0.5
        corners = [(-1, 0, -1), (-1, 0, 1), (1, 0, 1), (1, 0, -1)]
        foot = pose.to_world(np.array(corners) * (length / 2, 0, width / 2))
        tip = foot + np.array([offset[0], 0, offset[1]]) * 0.7 * height
        hull = cv2.convexHull(camera.project(np.concatenate([foot, tip])).astype(np.float32))
        cv2.fillPoly(mask, [np.round(hull * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.006 * camera.width)
    below = int(math.ceil(camera.horizon)) + 1
    image[below:] *= 1 - (0.35 + 0.5 * sun) * soft[below:, :, None].astype(np.float32) / 255


def _paint_skyline(rng: np.random.Generator, canvas: Canvas) -> None:
    """Hills or trees where the ground ends."""
    camera, horizon = canvas.camera, canvas.camera.horizon
    for depth, height in ((140, 0.09), (80, 0.05)):
        steps = rng.normal(0, 0.3, 40).cumsum()
        steps = (steps - steps.min()) / max(np.ptp(steps), 1e-6) + rng.uniform(0, 0.4, 40)
        u = np.linspace(-2, camera.width + 2, 40)
        crest = np.stack([u, horizon - steps * height * camera.height], axis=1)
        base = np.array([[camera.width + 2, horizon + 1.5], [-2, horizon + 1.5]])
        green = np.array((78, 98, 66)) * rng.uniform(0.7, 1.1)
        canvas.fill([np.concatenate([crest, base])], green, depth)


def _paint_houses(rng: np.random.Generator, canvas: Canvas, road: _Road) -> None:
    """Rows of houses on both sides, far ones first, with gaps."""
    houses = []
    for side in (-1, 1):
        z = rng.uniform(2, 14)
        gap = rng.choice([0.05, 0.3, 0.8])
        distance = road.half_width + _PAVEMENT + rng.uniform(3.5, 9)
        while z < 85:
            length = rng.uniform(7, 16)
            if rng.random() > gap:
                houses.append((z + length / 2, side, distance + rng.uniform(0, 2), length))
            z += length + rng.choice([0.0, 1.5, 4.0])
    for z, side, distance, length in sorted(houses, reverse=True):
        colour = choose(rng, _WALLS)
        height, width = rng.uniform(4, 13), 10.0
        pose = Pose(road.x(side * (distance + width / 2), z), z)
        draw_box(canvas, pose, (height, width, length), colour)
        wall = pose.x - side * width / 2
        if side * wall <= 0:
            continue
        windows = []
        columns, storeys = max(2, int(length / rng.uniform(2, 3.2))), max(1, int(height / 2.9))
        for column in range(columns):
            middle = z - length / 2 + (column + 0.5) * length / columns
            if middle < 2.5:
                continue
            for storey in range(storeys):
                low = 0.9 + storey * 2.9
                corners = [(low, -0.5), (low + 1.4, -0.5), (low + 1.4, 0.5), (low, 0.5)]
                world = np.array([(wall, up, middle + along) for up, along in corners])
                windows.append(canvas.camera.project(world))
        if windows:
            glass = np.array((62, 72, 84)) if rng.random() < 0.8 else np.array((214, 190, 120))
            canvas.fill(windows, glass, z)


def _draw_far_to_near(
    canvas: Canvas, actors: list[tuple[Actor, Pose]], props: list[tuple[Prop, Pose]]
) -> list[KittiObject]:
    camera = canvas.camera
    drawn = []
    for item, pose in sorted([*actors, *props], key=lambda placed: -placed[1].z):
        number = 0 if isinstance(item, Prop) else len(drawn) + 1
        canvas.start_object(number)
        item.draw(canvas, pose)
        if number:
            x1, y1, x2, y2 = box = canvas.bounds()
            clipped = (max(x1, 0), max(y1, 0), min(x2, camera.width), min(y2, camera.height))
            pixels = int(np.count_nonzero(canvas.owner == number))
            drawn.append((item, pose, box, clipped, pixels))
    left = np.bincount(canvas.owner.ravel(), minlength=len(drawn) + 1)
    objects = []
    for (actor, pose, box, clipped, pixels), visible in zip(drawn, left[1:]):
        if visible < MIN_VISIBLE_PIXELS or visible < MIN_VISIBLE_FRACTION * pixels:
            continue
        inside, whole = ((b[2] - b[0]) * (b[3] - b[1]) for b in (clipped, box))
        yaw = math.remainder(pose.yaw, 2 * math.pi)
        objects.append(
            KittiObject(
                actor.kind,
                truncated=1 - inside / whole,
                occluded=int(np.digitize(1 - visible / pixels, (0.1, 0.4, 0.7))),
                alpha=math.remainder(yaw - math.atan2(pose.x, pose.z), 2 * math.pi),
                bbox=clipped,
                dimensions=actor.size,
                location=(pose.x, camera.elevation, pose.z),
                rotation_y=yaw,
            )
        )
    return objects


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Exposure, white balance, lens blur and sensor noise."""
    gain = rng.uniform(0.65, 1.25) * rng.uniform(0.94, 1.06, 3)
    gamma = rng.uniform(0.85, 1.2)
    levels = np.linspace(0, 1, 256)[:, None] ** gamma * 255 * gain
    # One 256-entry table for each colour is far cheaper than arithmetic on pixels.
    table = np.clip(levels, 0, 255).astype(np.uint8)[None]
    image = cv2.LUT(image, table)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 7))
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)
