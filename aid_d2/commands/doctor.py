"""Tell what is installed, and whether data sets can be trained on."""

import argparse
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
import torchvision

from detectron2 import __version__ as detectron2_version
from detectron2.data import DatasetCatalog, MetadataCatalog

from .. import compat
from ..config import load_config
from ..data.image_check import check_images
from ..data.own_data import own_names, register_own_data
from ..data.problems import Problem
from ..data.registered import require_registered
from ..extras import EXTRAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    parser.add_argument(
        "--data",
        metavar="NAME_OR_CONFIG",
        help="also check a registered data set, or all data sets of a config file, opening every "
        "image",
    )


def run(args: argparse.Namespace) -> int:
    """Print what is installed, and check the data sets that are asked for.

    Returns:
        the exit code, 1 where something is wrong.
    """
    for name, version in _versions().items():
        print(f"{name:<12}{version}")
    for line in (*compat.REPAIRS, *_missing_packages()):
        print(line)
    faults = [*_gpu_faults(), *(_data_faults(args.data) if args.data else ())]
    for fault in faults:
        print(f"Wrong: {fault}")
    print("Something is wrong." if faults else "Nothing is wrong.")
    return int(bool(faults))


def _versions() -> dict[str, str]:
    gpu = torch.cuda.is_available()
    return {
        "aid_d2": importlib.metadata.version("aid_d2"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2_version,
        "CUDA": torch.version.cuda or "none: torch is built for the CPU",
        "device": torch.cuda.get_device_name() if gpu else "CPU: torch finds no GPU",
    }


def _missing_packages() -> Iterator[str]:
    for package, (extra, purpose) in EXTRAS.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield f"Not installed: {package}, for {purpose}: pip install aid_d2[{extra}]"


def _gpu_faults() -> Iterator[str]:
    """A GPU can be listed and still not compute, when torch is not built for it."""
    if torch.cuda.is_available():
        try:
            torch.ones(1, device="cuda").item()
        except RuntimeError as error:
            yield f"the GPU does not compute: {error}"


def _data_faults(name_or_config: str) -> Iterator[str]:
    try:
        names = _names(name_or_config)
    except (OSError, ValueError) as error:
        yield str(error)
        return
    for name in names:
        try:
            records = _records(name)
        except (OSError, ValueError) as error:
            yield f"data set {name}: {error}"
            continue
        print(f"{name}: {len(records)} images, {_boxes(name, records)}")
        yield from _tell(name, check_images(records))


def _names(name_or_config: str) -> list[str]:
    """The data sets that --data asks for; those of a config are registered."""
    if not name_or_config.endswith((".yaml", ".yml")):
        return [name_or_config]
    cfg = load_config(name_or_config)
    register_own_data(cfg, image_sample=0)
    sets = cfg.DATASETS
    return list(dict.fromkeys((*own_names(cfg), *sets.TRAIN, *sets.TEST, *sets.UNLABELED)))


def _records(name: str) -> list[dict]:
    require_registered([name])
    return DatasetCatalog.get(name)


def _boxes(name: str, records: list[dict]) -> str:
    """Their number, and that of each class."""
    found = Counter(x["category_id"] for record in records for x in record.get("annotations", ()))
    classes = enumerate(MetadataCatalog.get(name).get("thing_classes", ()))
    return f"{found.total()} boxes: " + ", ".join(f"{class_} {found[i]}" for i, class_ in classes)


def _tell(name: str, problems: Iterable[Problem]) -> Iterator[str]:
    """Print every place of the problems; the fatal ones are faults."""
    for problem in problems:
        print(f"{name}: {problem.kind}: {problem.count}")
        for place in problem.places:
            print(f"  {place}")
        if problem.fatal:
            yield f"data set {name}: {problem.kind}: {problem.count}"
