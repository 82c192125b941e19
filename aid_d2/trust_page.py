"""The page of `aid-d2 trust`: pictures of labels and detections, to be looked at in a browser."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from detectron2.data.detection_utils import read_image

from .data.coco_file import add_annotation, categories_of
from .deploy.images import write_image

OBJECT, FALSE_ALARM = "object", "false alarm"
_BINS = 20
_TEMPLATE = Path(__file__).with_suffix(".html")


@dataclass
class SeenImage:
    """An image, and what the teacher detects in it.

    Attributes:
        file_name: its path.
        width, height: in pixels of the file.
        detections: of each the keys `category`, `score` and `box`, x1 y1 x2 y2 in these pixels.
    """

    file_name: str
    width: int
    height: int
    detections: list[dict] = field(default_factory=list)


@dataclass
class Instance:
    """An object or a false alarm; the box in pixels of the image file."""

    kind: str
    trust: float
    category: str
    file_name: str
    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def box(self) -> list[float]:
        return [self.x1, self.y1, self.x2, self.y2]


def write_page(
    folder: Path, title: str, instances: list[Instance], images: list[SeenImage], count: int
) -> None:
    """Write index.html and its pictures, which need no server.

    Args:
        folder: exists.
        title: of the page.
        instances: least trusted first; those without a trust (NaN) come last.
        images: of all instances.
        count: of each kind, how many of the least trusted have a picture.
    """
    known = [x for x in instances if not math.isnan(x.trust)]
    shown = [x for kind in (OBJECT, FALSE_ALARM) for x in _of_kind(known, kind)[:count]]
    (folder / "pictures").mkdir(exist_ok=True)
    places, pictures = {}, []
    seen = {image.file_name: image for image in images}
    for name in dict.fromkeys(x.file_name for x in shown):
        picture = f"pictures/{len(places)}.jpg"
        write_image(folder / picture, read_image(name, "BGR"))
        places[name] = len(places)
        pictures.append({**vars(seen[name]), "file_name": Path(name).name, "picture": picture})
    data = {
        "title": title,
        "images": pictures,
        "items": [
            {
                "kind": x.kind,
                "trust": x.trust,
                "category": x.category,
                "image": places[x.file_name],
                "box": x.box,
            }
            for x in shown
        ],
        "classes": class_table(known),
        "histogram": histogram(known),
    }
    # A `<` inside would end the script that holds it.
    text = json.dumps(data).replace("<", "\\u003c")
    (folder / "index.html").write_text(_TEMPLATE.read_text().replace("DATA", text, 1))


def class_table(instances: list[Instance]) -> list[tuple[str, str, int, float]]:
    """Class, kind, number and median trust, of the objects and false alarms of each class."""
    groups = defaultdict(list)
    for x in instances:
        groups[x.category, x.kind].append(x.trust)
    return [(*key, len(values), median(values)) for key, values in sorted(groups.items())]


def histogram(instances: list[Instance]) -> list[list[int]]:
    """Numbers of objects and of false alarms with a trust in each twentieth of 0 to 1."""
    counts = [
        np.histogram([x.trust for x in _of_kind(instances, kind)], _BINS, (0, 1))[0]
        for kind in (OBJECT, FALSE_ALARM)
    ]
    return np.transpose(counts).tolist()


def coco_annotations(
    instances: list[Instance], images: list[SeenImage], classes: list[str]
) -> dict:
    """All instances as annotations in COCO's format, for other programs that show labels.

    Each has its trust as `score`, and `kind`. A file name is the path of the image.
    """
    numbers = {image.file_name: i for i, image in enumerate(images, start=1)}
    annotations: list[dict] = []
    for x in instances:
        add_annotation(
            annotations,
            numbers[x.file_name],
            classes.index(x.category) + 1,
            [x.x1, x.y1, x.x2 - x.x1, x.y2 - x.y1],
            score=None if math.isnan(x.trust) else x.trust,
            kind=x.kind,
        )
    return {
        "images": [
            {
                "id": numbers[image.file_name],
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
            }
            for image in images
        ],
        "categories": categories_of(classes),
        "annotations": annotations,
    }


def _of_kind(instances: list[Instance], kind: str) -> list[Instance]:
    return [x for x in instances if x.kind == kind]
