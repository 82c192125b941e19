"""Whether images can be read, and have the size that their annotations say."""

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import ExifTags, Image
from tqdm import tqdm

from .problems import Problem, problems_at

IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))

MISSING = "images that do not exist"
FOLDER_TWICE = "images that exist only without the folder that their path names twice"
UNREADABLE = "images that cannot be read"
ROTATED = "images with the size before the rotation that their EXIF data ask for"
SWAPPED = "images with width and height swapped"
WRONG_SIZE = "images of another size than their annotations say"
TURNED_TIFF = "TIFF images with a rotation, which is applied twice; turn them, without the tag"
DEEP = "images of more than 8 bits, whose values Detectron2 clips at 255; convert them to 8 bits"


def check_images(records: Sequence[dict], sample: int | None = None) -> list[Problem]:
    """Open images and compare them with what their annotations say.

    Args:
        records: data set dicts with `file_name`, and `height` and `width` to compare.
        sample: how many images, spread evenly, are looked at by their header alone. None decodes
            all images completely, which finds truncated ones.

    Returns:
        what is wrong with them, with all places; the bit depth alone is not fatal.
    """
    decode = sample is None
    if sample is not None:
        records = spread(records, sample)
    places: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:
        faults = pool.map(lambda record: image_fault(record, decode), records)
        progress = tqdm(faults, total=len(records), desc="images", disable=not decode or None)
        for record, fault in zip(records, progress):
            if fault is not None:
                places[fault].append(record["file_name"])
    return [p for kind in places for p in problems_at(kind, places[kind], fatal=kind != DEEP)]


def spread(items: Sequence, count: int) -> Sequence:
    """At most `count` of the items, spread evenly."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def files_under(folder: Path) -> list[Path]:
    """The images in a folder and below it, also through links, sorted; what is hidden is none."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        # A link to a folder above it would never end.
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = [x for x in folders if not x.startswith(".")]
        found += [Path(place, x) for x in names if not x.startswith(".")]
    return sorted(x for x in found if x.suffix.lower() in IMAGE_SUFFIXES)


def size_of(file: str | Path) -> tuple[int, int]:
    """Width and height of an image file by its header, as :func:`image_size`."""
    with Image.open(file) as image:
        return image_size(image)


def image_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image after the rotation by its EXIF data, as Detectron2 reads it."""
    width, height = image.size
    return (height, width) if _is_turned(image) else (width, height)


def _is_turned(image: Image.Image) -> bool:
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image: Image.Image) -> int:
    """By its EXIF data, 1 to 8; 1 is upright."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises of all kinds, and Detectron2 then does without EXIF too
        return 1


def image_fault(record: dict, decode: bool) -> str | None:
    """What is wrong with one image, as :func:`check_images` says it; None if nothing is."""
    path, size = record["file_name"], (record.get("width"), record.get("height"))
    try:
        with Image.open(path) as image:
            # Pillow turns it, and then Detectron2 does.
            if image.format == "TIFF" and _orientation(image) != 1:
                return TURNED_TIFF
            if decode:
                image.load()
            stored, shown, mode = image.size, image_size(image), image.mode
    except FileNotFoundError:
        return FOLDER_TWICE if _exists_without_repetition(Path(path)) else MISSING
    except Exception:  # Pillow raises of all kinds for broken files
        return UNREADABLE
    if None not in size and size != shown:
        if size == stored:
            return ROTATED
        return SWAPPED if size == shown[::-1] else WRONG_SIZE
    return DEEP if mode.startswith(("I", "F")) else None


def _exists_without_repetition(path: Path) -> bool:
    """Whether a/b/b/c exists as a/b/c, b being one or more folders."""
    parts = path.parts
    return any(
        parts[i : i + n] == parts[i + n : i + 2 * n]
        and os.path.isfile(Path(*parts[:i], *parts[i + n :]))
        for n in range(1, len(parts) // 2 + 1)
        for i in range(len(parts) - 2 * n)
    )
