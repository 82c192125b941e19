r"""Label images with a trained detector, for semi-supervised distillation (SAD, BMVC 2019).

    aid-d2 pseudo-label --config-file configs/coco/retinanet_R_101_2x.yaml \
        --weights output/coco/retinanet_R_101_2x/model_final.pth \
        --dataset coco_2017_unlabeled --output pseudo/unlabeled2017.json

`--images DIR` labels the images under a folder instead of a registered data set. Labels that a data
set may have are not looked at.

The result is a COCO-json file of the boxes that score at least `--threshold`; images without one
are left out, and so are those that cannot be read, which are counted. Stopped halfway, the same
command goes on where it was: finished images are in OUTPUT.partial until the end. Give the result
to DATASETS.COCO_JSON and DATASETS.UNLABELED.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
)
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode, Instances

from ..config import show_from
from ..data.coco_file import add_annotation, categories_of
from ..data.image_check import files_under
from ..data.own_data import register_own_data
from ..data.readable import read_or_skip
from ..data.registered import class_names, require_registered
from ..deploy.detector import detector_config, local_weights
from ..deploy.files import kept_if_whole, require_absent
from ..deploy.images import read_size
from ..modeling.teacher import Teacher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    parser.add_argument("--config-file", required=True, help="of the teacher")
    parser.add_argument("--weights", required=True, help="of the teacher")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="a registered data set, or one of DATASETS.COCO_JSON")
    source.add_argument("--images", type=Path, metavar="DIR", help="instead of a data set")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE.json", help="for the labels"
    )
    parser.add_argument("--threshold", type=float, default=0.4, help="least score (default 0.4)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")


def run(args: argparse.Namespace) -> None:
    """Label the images that are left, and write the file."""
    cfg = teacher_config(args)
    require_absent(args.output)
    images = registered_images(args.dataset) if args.dataset else images_under(args.images)
    teacher = Teacher.load(cfg, args.weights)
    classes = teacher_classes(cfg, teacher)
    begun = args.output.with_name(args.output.name + ".partial")
    settings = {
        "config": _digest(cfg),
        "weights": hashlib.sha256(Path(local_weights(args.weights)).read_bytes()).hexdigest(),
        "threshold": args.threshold,
        "classes": classes,
    }
    done = read_partial(begun, settings)
    left = [x for x in images if x["file_name"] not in done]
    if left:
        label(cfg, teacher.model, left, begun, args.threshold)
    found = read_partial(begun, settings)
    coco, root = to_coco(images, found, classes)
    with kept_if_whole(args.output) as scratch:
        scratch.write_text(json.dumps(coco))
    begun.unlink()
    skipped = sum(found[x["file_name"]] is None for x in images)
    print(
        f"{len(coco['annotations'])} boxes in {len(coco['images'])} of {len(images)} images, "
        f"{skipped} of them skipped. Use as\nDATASETS:\n  COCO_JSON: [[my_unlabeled, "
        f"{args.output.resolve()}, {Path(root).resolve()}]]\n"
        "  UNLABELED: [my_unlabeled]"
    )


def teacher_config(args) -> CfgNode:
    """The teacher's config, in which it shows all that the threshold asks for."""
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold is {args.threshold}; scores lie between 0 and 1.")
    local_weights(args.weights)
    cfg = detector_config(args.config_file, args.opts)
    register_own_data(cfg)
    show_from(cfg, args.threshold)
    return cfg


def teacher_classes(cfg: CfgNode, teacher: Teacher) -> list[str]:
    """Of the checkpoint, or of the data set that the teacher was trained on."""
    names = teacher.class_names
    if names is None and cfg.DATASETS.TRAIN:
        names = class_names(cfg.DATASETS.TRAIN[0])
    if names is None:
        raise ValueError(
            "Neither the checkpoint nor DATASETS.TRAIN of its config names the teacher's classes."
        )
    if teacher.wrapper.num_classes not in (None, len(names)):
        raise ValueError(
            f"The teacher has {teacher.wrapper.num_classes} classes, and the checkpoint or "
            f"DATASETS.TRAIN names {len(names)}: set it to what the teacher was trained on."
        )
    return list(names)


def _digest(cfg: CfgNode) -> str:
    """Of what the detections depend on."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = ""
    text = "".join(cfg[node].dump() for node in ("MODEL", "INPUT", "TEST"))
    return hashlib.sha256(text.encode()).hexdigest()


def registered_images(name: str) -> list[dict]:
    """The images of a registered data set, without its annotations."""
    require_registered([name])
    keys = ("file_name", "height", "width")
    return [{key: record[key] for key in keys} for record in DatasetCatalog.get(name)]


def images_under(folder: Path) -> list[dict]:
    """The images in a folder and below."""
    if not folder.is_dir():
        raise FileNotFoundError(f"--images: there is no folder {folder}.")
    images = []
    for path in files_under(folder):
        record = {"file_name": str(path.resolve())}
        width, height = read_or_skip(read_size, record) or (0, 0)
        images.append({**record, "width": width, "height": height})
    if not images:
        raise ValueError(f"--images: {folder} holds no image.")
    return images


def read_partial(path: Path, settings: dict) -> dict[str, list | None]:
    """Detections [class, score, x, y, w, h] by image file, None where it could not be read; the
    file is made if there is none.
    """
    text = path.read_text() if path.exists() else ""
    # A run that was killed may have left its last line unfinished: it is cut off.
    whole = text[: text.rfind("\n") + 1]
    if whole:
        os.truncate(path, len(whole.encode()))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = json.dumps(settings) + "\n"
        path.write_text(whole)
    header, *lines = whole.splitlines()
    if json.loads(header) != settings:
        raise ValueError(
            f"{path} was begun with other settings, {header}: remove it, or choose another "
            "--output."
        )
    return dict(json.loads(line) for line in lines)


def label(
    cfg: CfgNode, model: torch.nn.Module, images: list[dict], output: Path, threshold: float
) -> None:
    """Append the detections on each image to the partial file."""
    mapper = partial(_mapped, DatasetMapper(cfg, is_train=False))
    loader = build_detection_test_loader(
        images, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    with output.open("a") as file, inference_context(model), torch.no_grad():
        for ((name, image),) in tqdm(loader, unit="image"):
            found = None
            if image is not None:
                seen = model([image])[0]["instances"].to("cpu")
                found = detections(seen[seen.scores >= threshold])
            file.write(json.dumps([name, found]) + "\n")
            file.flush()


def _mapped(mapper: Callable[[dict], dict], record: dict) -> tuple[str, dict | None]:
    return record["file_name"], read_or_skip(mapper, record)


def detections(found: Instances) -> list[list]:
    """[class, score, x, y, width, height] of each, in pixels."""
    boxes = BoxMode.convert(found.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    return [
        [class_, score, *box]
        for class_, score, box in zip(
            found.pred_classes.tolist(), found.scores.tolist(), boxes.tolist()
        )
    ]


def to_coco(images: list[dict], found: dict[str, list], classes: list[str]) -> tuple[dict, str]:
    """COCO's format of the images with detections, and the folder that its names start from."""
    root = os.path.commonpath([os.path.dirname(x["file_name"]) for x in images])
    coco = {
        "images": [],
        "annotations": [],
        "categories": categories_of(classes),
    }
    for image in images:
        if not found[image["file_name"]]:
            continue
        image_id = len(coco["images"]) + 1
        name = os.path.relpath(image["file_name"], root)
        coco["images"].append({**image, "id": image_id, "file_name": name})
        for class_, score, *box in found[image["file_name"]]:
            add_annotation(coco["annotations"], image_id, class_ + 1, box, score=score)
    return coco, root
