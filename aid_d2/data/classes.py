"""The classes of a user's data sets: choosing, ordering, renaming and joining them by name."""

from collections.abc import Iterable, Mapping, Sequence

from ..suggestions import did_you_mean
from .coco_file import categories_of
from .problems import Problem, problems_at


def parse_classes(entries: Iterable) -> dict[str, str]:
    """Read the config key DATASETS.CLASSES.

    Args:
        entries: a name, or [class, name, name, ...] for a class that the data call otherwise.

    Returns:
        the class of each name of the data, in the order of the classes.

    Raises:
        ValueError: an entry is of another form, or a name stands for two classes.
    """
    class_of: dict[str, str] = {}
    for entry in entries:
        parts = [entry, entry] if isinstance(entry, str) else entry
        is_list = isinstance(parts, (list, tuple)) and len(parts) > 1
        if not is_list or not all(isinstance(part, str) for part in parts):
            raise ValueError(
                f"DATASETS.CLASSES has the entry {entry!r}; expected a name, or [class, name in "
                "the data, ...]."
            )
        class_, *names = parts
        for name in names:
            if name in class_of:
                raise ValueError(f"DATASETS.CLASSES has the name {name!r} twice; keep one of them.")
            class_of[name] = class_
    return class_of


def require_known(names: Iterable[str], known: Sequence[str]) -> None:
    """Raise ValueError, with the nearest name that the data have, for one that they lack."""
    for name in names:
        if name not in known:
            raise ValueError(
                f"DATASETS.CLASSES names {name!r}, which no data set of the config has."
                f"{did_you_mean(name, known)} They have {', '.join(known)}."
            )


def select_classes(coco: dict, class_of: Mapping[str, str]) -> tuple[dict, list[Problem]]:
    """Reduce annotations in COCO's format to some classes; images without objects stay.

    Args:
        coco: sound images, annotations and categories. It is left as it is.
        class_of: of each name of a category that is kept; the classes come in this order.

    Returns:
        the annotations, their categories being 1, 2, ...; and the names that were left out, each
        with the number and the files of its objects.
    """
    categories = categories_of(dict.fromkeys(class_of.values()))
    ids = {category["name"]: category["id"] for category in categories}
    names = {c["id"]: c["name"] for c in coco["categories"]}
    kept, left_out = [], {}
    for annotation in coco["annotations"]:
        name = names[annotation["category_id"]]
        if name in class_of:
            kept.append({**annotation, "category_id": ids[class_of[name]]})
        else:
            left_out.setdefault(name, []).append(annotation["image_id"])
    file_names = {image["id"]: image["file_name"] for image in coco["images"]}
    problems = []
    for name, images in left_out.items():
        kind = f"objects of class {name!r}, left out by DATASETS.CLASSES"
        problems += problems_at(kind, [file_names[i] for i in images], fatal=False)
    return {**coco, "annotations": kept, "categories": categories}, problems
