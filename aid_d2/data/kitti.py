"""KITTI's object detection set (Geiger et al., CVPR 2012), read into COCO's format."""

import logging
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import UnidentifiedImageError

from .coco_file import add_annotation, categories_of
from .image_check import size_of

logger = logging.getLogger(__name__)

KITTI_CLASSES = ("Car", "Pedestrian", "Cyclist")
KITTI_8_CLASSES = tuple("Car Van Truck Pedestrian Person_sitting Cyclist Tram Misc".split())
KITTI_TYPES = (*KITTI_8_CLASSES, "DontCare")
# Kept beside COCO's own keys, so that KITTI's easy / moderate / hard levels can be told apart.
EXTRA_ANNOTATION_KEYS = ["kitti_type", "truncated", "occluded"]

LAYOUT = """
  {root}/training/image_2/000000.png ...
  {root}/training/label_2/000000.txt ...
  {root}/ImageSets/{{train,val}}.txt   (optional, one frame id a line)
Set the environment variable DETECTRON2_DATASETS to the directory that holds {name}/; \
datasets/README.md says where to get it."""
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_COLUMNS = (
    "type truncated occluded alpha x1 y1 x2 y2 height width length x y z rotation_y score".split()
)


@dataclass(frozen=True)
class KittiObject:
    """One line of a label file.

    Attributes:
        type: one of `KITTI_TYPES`.
        truncated: fraction outside the image, 0 to 1; -1 for DontCare.
        occluded: 0 fully visible, 1 partly, 2 largely occluded, 3 unknown; -1 for DontCare.
        alpha: outputs angle in radians.
        bbox: x1, y1, x2, y2 in pixels.
        dimensions: height, width, length in meters.
        location: x, y, z of the bottom center in camera coordinates, in meters.
        rotation_y: around the camera's y axis, in radians.
        score: of a detection; None in ground truth.
    """

    type: str
    truncated: float
    occluded: int
    alpha: float
    bbox: tuple[float, float, float, float]
    dimensions: tuple[float, float, float]
    location: tuple[float, float, float]
    rotation_y: float
    score: float | None = None


def parse_label_file(path: Path | str) -> list[KittiObject]:
    """Reads a label file; an empty one is an image without objects.

    Raises:
        ValueError: a line that is not KITTI's, named with the file and line number, or a file that
            is not in UTF-8.
    """
    objects = []
    for number, line in enumerate(_read_text(Path(path)).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            objects.append(_parse_fields(line.split()))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return objects


def _parse_fields(fields: list[str]) -> KittiObject:
    if len(fields) not in (15, 16):
        raise ValueError(
            f"{len(fields)} fields, expected 15, or 16 with a score: {', '.join(_COLUMNS)}"
        )
    if fields[0] not in KITTI_TYPES:
        raise ValueError(f"unknown type {fields[0]!r}, expected one of {', '.join(KITTI_TYPES)}")
    values = []
    for column, text in zip(_COLUMNS[1:], fields[1:]):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{column} is {text!r}, expected a finite number")
        values.append(value)
    if not values[1].is_integer():
        raise ValueError(f"occluded is {fields[2]!r}, expected an integer")
    return KittiObject(
        fields[0],
        truncated=values[0],
        occluded=int(values[1]),
        alpha=values[2],
        bbox=tuple(values[3:7]),
        dimensions=tuple(values[7:10]),
        location=tuple(values[10:13]),
        rotation_y=values[13],
        score=values[14] if len(values) == 15 else None,
    )


def frame_ids(root: Path | str) -> list[str]:
    """Lists the frames of a data set in KITTI's layout.

    Args:
        root: the directory that holds `training/`.

    Returns:
        sorted names, without suffix, of all images and label files.

    Raises:
        FileNotFoundError: a directory is missing, or there is no frame.
    """
    root = Path(root)
    missing = [folder for folder in (_image_dir(root), _label_dir(root)) if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"No such directory: {missing[0]}. Expected{_layout(root)}")
    ids = {*_by_frame(_image_dir(root), _IMAGE_SUFFIXES), *_by_frame(_label_dir(root), (".txt",))}
    if not ids:
        raise FileNotFoundError(f"No frames in {root}. Expected{_layout(root)}")
    return sorted(ids)


def frame_files(root: Path | str, ids: Sequence[str]) -> list[tuple[Path, Path]]:
    """Finds the image and the label file of each frame.

    Args:
        root: the directory that holds `training/`.
        ids: frame names such as `000012`.

    Returns:
        (image, label file) of each id, in order.

    Raises:
        FileNotFoundError: naming the first frame that lacks one of them.
    """
    root = Path(root)
    images = _by_frame(_image_dir(root), _IMAGE_SUFFIXES)
    labels = _by_frame(_label_dir(root), (".txt",))
    for frame in ids:
        for kind, found, file in (
            ("image", images, _image_dir(root) / f"{frame}.png"),
            ("label file", labels, _label_dir(root) / f"{frame}.txt"),
        ):
            if frame not in found:
                raise FileNotFoundError(
                    f"Frame {frame} has no {kind}: {file} is missing. Restore it (an image without "
                    "objects has an empty label file), or remove the frame's other file and its "
                    f"line in {root / 'ImageSets'}."
                )
    return [(images[frame], labels[frame]) for frame in ids]


def split_ids(
    ids: Sequence[str], train_fraction: float = 0.8, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Divides frames at random, the same way each time and whatever their order.

    The AID paper splits KITTI's 7481 training frames 8:2 and does not publish its list; this gives
    5985 and 1496 frames.

    Args:
        ids: distinct frame names.
        train_fraction: between 0 and 1.
        seed: of the shuffle.

    Returns:
        sorted training and validation frames.
    """
    if not 0 < train_fraction < 1:
        raise ValueError(f"train_fraction must lie between 0 and 1, not {train_fraction}.")
    shuffled = sorted(ids)
    random.Random(seed).shuffle(shuffled)
    n_train = round(train_fraction * len(shuffled))
    return sorted(shuffled[:n_train]), sorted(shuffled[n_train:])


def read_splits(root: Path | str) -> dict[str, list[str]]:
    """Reads `ImageSets/train.txt` and `val.txt`; without them, divides by :func:`split_ids`.

    Args:
        root: the directory that holds `training/`.

    Returns:
        frames of `train`, `val` and, both together, `trainval`; sorted.

    Raises:
        FileNotFoundError: no data set there, or only one of the two files exists.
        ValueError: a frame that does not exist, is listed twice, or is in both files; a split
            without frames.
    """
    root = Path(root)
    ids = frame_ids(root)
    files = {split: root / "ImageSets" / f"{split}.txt" for split in ("train", "val")}
    missing = [file for file in files.values() if not file.is_file()]
    if len(missing) == 2:
        train, val = split_ids(ids)
        if not train or not val:
            raise ValueError(
                f"{root} has {len(ids)} frames, too few to be divided 8:2. Add frames, or list "
                f"those of each split in {files['train']} and {files['val']}."
            )
    elif missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing while the other split file exists. Write it, or remove the "
            "other to use the default split."
        )
    else:
        train, val = (_read_id_file(file, set(ids)) for file in files.values())
        both = sorted(set(train) & set(val))
        if both:
            raise ValueError(
                f"Frame {both[0]} is in both {files['train']} and {files['val']} "
                f"({len(both)} such frames); each may be in one only."
            )
    return {"train": train, "val": val, "trainval": sorted(train + val)}


def _read_id_file(path: Path, known: set[str]) -> list[str]:
    listed = _read_text(path).split()
    repeated = [frame for frame, count in Counter(listed).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} lists frame {repeated[0]} more than once.")
    unknown = [frame for frame in listed if frame not in known]
    if unknown:
        raise ValueError(
            f"{path} lists frame {unknown[0]}, of which there is neither an image nor a label file "
            f"({len(unknown)} such frames)."
        )
    if not listed:
        raise ValueError(f"{path} is empty; expected one frame id a line, such as 000012.")
    return sorted(listed)


def kitti_to_coco(root: Path | str, ids: Sequence[str], classes: Sequence[str]) -> dict:
    """Converts frames to COCO's format.

    Objects of types outside `classes` become ignore regions: one `iscrowd` annotation for each
    class, as COCO's evaluation keeps crowds apart by class. A detection inside one counts neither
    as true nor as false positive; in training Detectron2 leaves crowds out.

    Args:
        root: the directory that holds `training/`.
        ids: frames to convert; the number in the name becomes the image id.
        classes: KITTI types to detect; they get the category ids 1, 2, ...

    Returns:
        a dict to be written as a COCO json file. Boxes are x, y, width, height in pixels.
        Annotations carry `EXTRA_ANNOTATION_KEYS` too.

    Raises:
        FileNotFoundError: a frame lacks its image or label file.
        ValueError: an unknown class, a frame name that is no number, a malformed label file, or an
            unreadable image.
    """
    unknown = [name for name in classes if name not in KITTI_8_CLASSES]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is no KITTI class; choose from {', '.join(KITTI_8_CLASSES)}."
        )
    categories = categories_of(classes)
    category_ids = {category["name"]: category["id"] for category in categories}
    images: list[dict] = []
    annotations: list[dict] = []
    warnings = Counter()
    for frame, (image_file, label_file) in zip(ids, frame_files(root, ids)):
        if not frame.isdecimal():
            raise ValueError(f"Frame name {frame!r} ({image_file}) must be a number, like 000012.")
        width, height = _image_size(image_file)
        image = {"id": int(frame), "file_name": image_file.name, "width": width, "height": height}
        images.append(image)
        for obj in parse_label_file(label_file):
            box = _clip(obj.bbox, width, height)
            x1, y1, x2, y2 = box
            if x2 <= x1 or y2 <= y1:
                warnings["without any area inside the image, left out"] += 1
                continue
            if box != obj.bbox:
                warnings["partly outside the image, clipped"] += 1
            ignored = obj.type not in category_ids
            for category_id in category_ids.values() if ignored else [category_ids[obj.type]]:
                add_annotation(
                    annotations,
                    image["id"],
                    category_id,
                    [x1, y1, x2 - x1, y2 - y1],
                    iscrowd=int(ignored),
                    kitti_type=obj.type,
                    truncated=obj.truncated,
                    occluded=obj.occluded,
                )
    for what, count in warnings.items():
        logger.warning("%s: %d boxes %s.", root, count, what)
    return {
        "info": {"description": "KITTI-layout data set converted by aid_d2"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _clip(box: tuple[float, ...], width: int, height: int) -> tuple[float, ...]:
    return tuple(min(max(v, 0.0), float(size)) for v, size in zip(box, (width, height) * 2))


def _image_size(path: Path) -> tuple[int, int]:
    try:
        return size_of(path)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: convert it ({error}).") from error


def _by_frame(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of each frame by its name; suffixes count in upper case too."""
    return {path.stem: path for path in folder.iterdir() if path.suffix.lower() in suffixes}


def _image_dir(root: Path) -> Path:
    return root / "training" / "image_2"


def _label_dir(root: Path) -> Path:
    return root / "training" / "label_2"


def _layout(root: Path) -> str:
    return LAYOUT.format(root=root, name=root.name)
