"""Writes a set of synthetic scenes in KITTI's layout, with label noise on request."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..kitti import KITTI_CLASSES, KittiObject, split_ids
from ..label_noise import DROPPED, JITTERED_BOX, WRONG_CLASS, jitter_box
from .canvas import choose
from .scene import render_scene

logger = logging.getLogger(__name__)

# Raise when the same settings give other files than before.
RENDERER_VERSION = 1
_TRAIN_FRACTION = 0.8
_FALSE_BOX = "false box"
_NOISE_KINDS = (WRONG_CLASS, JITTERED_BOX, DROPPED, _FALSE_BOX)
# Height over width of a false box, and its share of the image's height.
_FALSE_SHAPES = {"Car": (0.5, 1.0), "Pedestrian": (2.0, 3.0), "Cyclist": (1.0, 2.2)}
_FALSE_HEIGHTS = (0.08, 0.4)


@dataclass(frozen=True)
class SceneSetConfig:
    """What a set is made from; equal settings give bit-identical files.

    Attributes:
        images: number of scenes; four in five are for training.
        seed: of everything random. A scene depends on the seed and its own number only.
        height, width: of the images in pixels.
        label_noise: fraction of the training frames' objects with a wrong label, 0 to 1.
    """

    images: int
    seed: int = 0
    height: int = 128
    width: int = 416
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ValueError(f"A set needs at least 2 images, not {self.images}.")
        if self.height < 64 or self.width < 64:
            raise ValueError(f"Images must be at least 64 x 64, not {self.height} x {self.width}.")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise must lie between 0 and 1, not {self.label_noise}.")


def write_scene_set(output: Path | str, config: SceneSetConfig) -> bool:
    """Writes `training/{image_2,label_2}`, `ImageSets` and `label_noise.json` under `output`.

    `meta.json` there tells what the set was made from. A complete set of the same settings is left
    alone, an interrupted one is written anew. Labels are noisy in training frames only, so that
    validation stays true; the images do not depend on `label_noise`.

    Args:
        output: directory to fill.
        config: settings of the set.

    Returns:
        whether anything was written.

    Raises:
        FileExistsError: `output` holds something else.
    """
    output = Path(output)
    meta_file = output / "meta.json"
    meta = {"renderer_version": RENDERER_VERSION, **asdict(config), "complete": True}
    found = json.loads(meta_file.read_text()) if meta_file.is_file() else None
    if found == meta:
        logger.info("%s already holds this set.", output)
        return False
    unfinished = {**meta, "complete": False}
    if output.exists() and found != unfinished and any(output.iterdir()):
        raise FileExistsError(
            f"{output} holds {'a set of other settings' if found else 'other files'}: choose an "
            "empty directory, or remove it first."
        )
    folders = [output / f for f in ("training/image_2", "training/label_2", "ImageSets")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    meta_file.write_text(json.dumps(unfinished))

    ids = [f"{i:06d}" for i in range(config.images)]
    train, val = split_ids(ids, _TRAIN_FRACTION, config.seed)
    for split, listed in (("train", train), ("val", val)):
        _write_lines(folders[2] / f"{split}.txt", listed)
    noisy, changes = set(train), []
    for i, frame in enumerate(tqdm(ids, desc=f"Rendering {output}", disable=None)):
        rng = np.random.default_rng([config.seed, i])
        image, objects = render_scene(rng, config.height, config.width)
        if frame in noisy and config.label_noise > 0:
            objects, made = add_label_noise(rng, objects, config.label_noise, image.shape[:2])
            changes += [{"frame": frame, **change} for change in made]
        file = folders[0] / f"{frame}.png"
        if not cv2.imwrite(str(file), np.ascontiguousarray(image[..., ::-1])):
            raise OSError(f"Cannot write {file}.")
        _write_lines(folders[1] / f"{frame}.txt", [label_line(obj) for obj in objects])
    (output / "label_noise.json").write_text(json.dumps(changes, indent=1))
    temporary = meta_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(meta))
    os.replace(temporary, meta_file)
    logger.info("Wrote %d scenes to %s, %d wrong labels.", config.images, output, len(changes))
    return True


def add_label_noise(
    rng: np.random.Generator,
    objects: Sequence[KittiObject],
    fraction: float,
    shape: tuple[int, int],
) -> tuple[list[KittiObject], list[dict]]:
    """Spoils labels at random: a wrong class, a shifted and resized box, none, or an invented one.

    Args:
        rng: source of randomness.
        objects: true labels of one image.
        fraction: probability that an object causes an error; the four kinds are equally likely.
        shape: height and width of the image in pixels.

    Returns:
        labels with errors, and for each error its `kind` and the label lines `true` and `written`,
        None where there is none.
    """
    noisy, changes = [], []
    for obj in objects:
        kept, added, kind = obj, None, None
        if rng.random() < fraction:
            kind = choose(rng, _NOISE_KINDS)
        if kind == WRONG_CLASS:
            others = [name for name in KITTI_CLASSES if name != obj.type]
            kept = replace(obj, type=choose(rng, others))
        elif kind == JITTERED_BOX:
            kept = replace(obj, bbox=jitter_box(rng, obj.bbox, shape))
        elif kind == DROPPED:
            kept = None
        elif kind == _FALSE_BOX:
            added = _false_object(rng, shape)
        noisy += [o for o in (kept, added) if o is not None]
        if kind is not None:
            true, written = (None, added) if added else (obj, kept)
            lines = {"true": true and label_line(true), "written": written and label_line(written)}
            changes.append({"kind": kind, **lines})
    return noisy, changes


def _false_object(rng: np.random.Generator, shape: tuple[int, int]) -> KittiObject:
    kind = choose(rng, KITTI_CLASSES)
    height = shape[0] * rng.uniform(*_FALSE_HEIGHTS)
    width = height / rng.uniform(*_FALSE_SHAPES[kind])
    x, y = rng.uniform(0, shape[1] - width), rng.uniform(0.35 * shape[0], shape[0] - height)
    # As KITTI writes what it has no 3D box for.
    return KittiObject(
        kind,
        truncated=0.0,
        occluded=0,
        alpha=-10.0,
        bbox=(x, y, x + width, y + height),
        dimensions=(-1.0, -1.0, -1.0),
        location=(-1000.0, -1000.0, -1000.0),
        rotation_y=-10.0,
    )


def label_line(obj: KittiObject) -> str:
    """Returns the object as a line of a KITTI label file."""
    numbers = (*obj.bbox, *obj.dimensions, *obj.location, obj.rotation_y)
    # + 0.0 turns a rounded -0.0 into 0.0.
    text = " ".join(f"{round(number, 2) + 0.0:.2f}" for number in numbers)
    truncated, alpha = (round(v, 2) + 0.0 for v in (obj.truncated, obj.alpha))
    return f"{obj.type} {truncated:.2f} {obj.occluded} {alpha:.2f} {text}"


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
