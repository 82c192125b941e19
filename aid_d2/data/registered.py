"""Data sets by their names in Detectron2's catalogs."""

from collections.abc import Iterable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..suggestions import did_you_mean


def require_registered(names: Iterable[str]) -> None:
    """
    Raises:
        ValueError: a name is not that of a registered data set.
    """
    for name in names:
        if name not in DatasetCatalog:
            raise ValueError(
                f"There is no data set {name!r}.{did_you_mean(name, DatasetCatalog.list())} Own "
                "ones are listed in DATASETS.COCO_JSON, VOC or YOLO."
            )


def class_names(name: str) -> list[str] | None:
    """The classes of a registered data set, None where it says nothing of them.

    A data set that learns its classes as it is read is read.
    """
    require_registered([name])
    if MetadataCatalog.get(name).get("thing_classes") is None:
        DatasetCatalog.get(name)
    names = MetadataCatalog.get(name).get("thing_classes")
    return None if names is None else list(names)


class UnknownClassesError(ValueError):
    """A data set has classes that a detector does not know by their names."""


def require_same_classes(
    detector: str, theirs: Sequence[str], dataset: str, names: Sequence[str]
) -> None:
    """Compare the classes of a detector with those of a data set by name.

    Args:
        detector: how the message calls it, such as "the teacher".
        theirs: its classes in order.
        dataset: name of the data set.
        names: its classes in order.

    Raises:
        UnknownClassesError: the data set has classes of other names.
        ValueError: the same names stand in another order.
    """
    remedy = "DATASETS.CLASSES orders and renames the classes of your own data sets."
    if list(theirs) == list(names):
        return
    listed = (
        f"The classes of {detector} are {', '.join(theirs)}; those of the data set {dataset!r} are "
        f"{', '.join(names)}"
    )
    if sorted(theirs) == sorted(names):
        raise ValueError(f"{listed}, in another order. {remedy}")
    unknown = [name for name in names if name not in theirs]
    raise UnknownClassesError(f"{listed}. Unknown to it: {', '.join(unknown) or 'none'}. {remedy}")
