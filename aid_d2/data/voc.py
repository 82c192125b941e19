"""Pascal VOC's xml annotations as COCO's."""

from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from .coco_file import add_annotation, categories_of
from .image_check import IMAGE_SUFFIXES, UNREADABLE, size_of
from .problems import Fault, Problem, problems_of


def read_voc(folder: Path, split: str | None = None) -> tuple[dict, Path, list[Problem]]:
    """Read annotations as Pascal VOC and labelImg write them.

    Args:
        folder: with Annotations/*.xml and JPEGImages/ (also annotations/ and images/), or with xml
            files and images together.
        split: which of ImageSets/Main/<split>.txt to read; by default all xml files.

    Returns:
        annotations in COCO's format, classes in the order of the alphabet, `difficult` objects as
        `iscrowd`; the directory of the images; and what is wrong with them.

    Raises:
        FileNotFoundError: there are no annotations, or there is no such split.
    """
    annotation_dir = _first_dir(folder, "Annotations", "annotations")
    image_dir = _first_dir(folder, "JPEGImages", "images")
    images = _images_by_stem(image_dir)
    coco: dict = {"images": [], "annotations": [], "categories": []}
    objects, faults = [], defaultdict(list)
    for xml in _xml_files(folder, annotation_dir, split):
        try:
            root = _parse(xml)
            path = _image_of(xml, root, images)
            width, height = _size(root, path)
            image_id = len(coco["images"]) + 1
            objects += [(image_id, *found) for found in map(_read_object, root.iter("object"))]
        except Fault as fault:
            faults[str(fault)].append(xml.name)
            continue
        coco["images"].append(
            {"id": image_id, "file_name": path.name, "width": width, "height": height}
        )
    names = sorted({name for _, name, _, _ in objects})
    coco["categories"] = categories_of(names)
    ids = {category["name"]: category["id"] for category in coco["categories"]}
    for image_id, name, box, difficult in objects:
        add_annotation(coco["annotations"], image_id, ids[name], box, iscrowd=difficult)
    return coco, image_dir, problems_of(faults)


def _first_dir(folder: Path, *names: str) -> Path:
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    images = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images[path.stem].append(path)
    return images


def _xml_files(folder: Path, annotation_dir: Path, split: str | None) -> list[Path]:
    if split is None:
        files = sorted(
            path for path in annotation_dir.glob("*.xml") if not path.name.startswith(".")
        )
        if not files:
            raise FileNotFoundError(f"No VOC annotations {annotation_dir}/*.xml.")
        return files
    listed = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        raise FileNotFoundError(
            f"No list {listed} of the images of VOC's split {split!r}. Leave the split out of the "
            "entry to read all xml files."
        )
    lines = listed.read_text("utf-8-sig", errors="replace").splitlines()
    return list(dict.fromkeys(_listed(annotation_dir, x.strip()) for x in lines if x.strip()))


def _listed(annotation_dir: Path, line: str) -> Path:
    """The file that a line of a split names: all of the line, or what stands before a 1 or -1."""
    whole = annotation_dir / f"{line}.xml"
    return whole if whole.is_file() else annotation_dir / f"{line.split()[0]}.xml"


def _parse(xml: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(xml).getroot()
    except FileNotFoundError:
        raise Fault("xml files that the split lists and that do not exist") from None
    except (ElementTree.ParseError, OSError, ValueError, LookupError):
        raise Fault("files that are not xml") from None


def _image_of(xml: Path, root: ElementTree.Element, images: dict[str, list[Path]]) -> Path:
    """The image of the same name; `filename` tells it among several, or where there is none."""
    named = Path((root.findtext("filename") or "").strip())
    found = images.get(xml.stem) or images.get(named.stem)
    if not found:
        raise Fault("xml files without an image of the same name")
    return next((path for path in found if path.name == named.name), found[0])


def _size(root: ElementTree.Element, path: Path) -> tuple[int, int]:
    """Width and height by the annotation, or by the image where that leaves them out."""
    size = root.find("size")
    if size is not None:
        width, height = (_number(size, tag, 0) for tag in ("width", "height"))
        if 1 <= width < 2**31 and 1 <= height < 2**31:
            return int(width), int(height)
    try:
        return size_of(path)
    except Exception:  # Pillow raises of all kinds for broken files
        raise Fault(f"xml files without a size, and {UNREADABLE}") from None


def _read_object(found: ElementTree.Element) -> tuple[str, list[float], int]:
    """Name, box as x, y, width and height, and whether the object is `difficult`."""
    name, box = (found.findtext("name") or "").strip(), found.find("bndbox")
    if not name:
        raise Fault("xml files with an object without <name>")
    if box is None:
        raise Fault("xml files with an object without <bndbox>")
    x1, y1, x2, y2 = (_number(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1 and includes the last one, as Detectron2's VOC loader knows.
    x1, y1 = x1 - 1, y1 - 1
    return name, [x1, y1, x2 - x1, y2 - y1], int(found.findtext("difficult", "").strip() == "1")


def _number(parent: ElementTree.Element, tag: str, default: float | None = None) -> float:
    text = parent.findtext(tag)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError:
        raise Fault(f"xml files in which <{tag}> is no number") from None
