r"""Show what AID sees of a data set: objects and false alarms, those least trusted first.

    aid-d2 trust --config-file configs/highway/retinanet_R_18.yaml \
        --weights output/highway/retinanet_R_18/model_final.pth \
        --dataset highway_train --output output/trust

With `--truth`, the correct labels of the same images, it also says how many of the least trusted
objects are really wrong.

Objects that a good teacher is least trusted on are hard, or their labels are wrong; its confident
false alarms may be objects that nobody labeled. `--output` then has

    index.html      the least trusted of each kind, to filter and sort, label and teacher drawn
    trust.csv       all objects and false alarms, in pixels of their images
    trust.json      the same as COCO annotations, each with its trust as score

An object's trust is AID's weight of it with granularity `instance`. Of a false alarm, a detection
of at least `--score` that overlaps no object by an IoU of `--iou`, it is exp(-alpha * D) with D the
cross-entropy -ln(1 - score) of calling it background. A detection of which that share lies in a
crowd or a region to be ignored is none.
"""

import argparse
import csv
import json
import math
from collections import defaultdict
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from tqdm import tqdm

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_ioa, pairwise_iou

from ..aid import PRESETS, loss_to_weight
from ..data.coco_file import read_coco_json
from ..data.own_data import register_own_data
from ..data.readable import read_or_skip
from ..data.registered import require_registered, require_same_classes
from ..deploy.detector import detector_config, local_weights
from ..deploy.files import require_empty
from ..modeling.teacher import Teacher
from ..trust_page import (
    FALSE_ALARM,
    OBJECT,
    Instance,
    SeenImage,
    coco_annotations,
    write_page,
)
from ..visualization import labeled_input, object_weights

LEAST_TRUSTED = 0.05
# IoU of a label with its own correct one: all but the rounding of resized images.
SAME_BOX = 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    parser.add_argument("--config-file", required=True, help="of the teacher")
    parser.add_argument("--weights", required=True, help="of the teacher")
    parser.add_argument("--dataset", required=True, help="its name, with labels")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="for the page")
    alpha = PRESETS["PAPER"]["ALPHA"]
    parser.add_argument("--alpha", type=float, default=alpha, help=f"of AID ({alpha}, its paper's)")
    parser.add_argument("--score", type=float, default=0.3, help="of a false alarm (default 0.3)")
    parser.add_argument("--iou", type=float, default=0.5, help="of a false alarm (default 0.5)")
    parser.add_argument(
        "--pictures", type=int, default=200, help="of each kind on the page (default 200)"
    )
    parser.add_argument("--truth", type=Path, metavar="FILE.json", help="correct labels, COCO")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")


def run(args: argparse.Namespace) -> None:
    """Write the page and the table."""
    if args.alpha < 0:
        raise ValueError(f"--alpha is {args.alpha}; AID's weights exp(-alpha D) need 0 or more.")
    local_weights(args.weights)
    cfg = detector_config(args.config_file, args.opts)
    register_own_data(cfg)
    require_empty(args.output)
    require_registered([args.dataset])
    records = DatasetCatalog.get(args.dataset)
    truth = read_truth(args.truth, records) if args.truth else None
    teacher = Teacher.load(cfg, args.weights)
    teacher.wrapper.check_losses()
    classes = MetadataCatalog.get(args.dataset).thing_classes
    if teacher.class_names:
        require_same_classes("the teacher", teacher.class_names, args.dataset, classes)
    if len(classes) != teacher.wrapper.num_classes:
        raise ValueError(
            f"The data set {args.dataset!r} has {len(classes)} classes and the teacher "
            f"{teacher.wrapper.num_classes}: its loss on the labels needs the same ones."
        )
    instances, images = [], []
    for record in tqdm(records, unit="image"):
        example = read_or_skip(partial(labeled_input, cfg), record)
        if example is not None:
            found, image = look(teacher, record, example, classes, args)
            instances += found
            images.append(image)
    # Of some objects the losses of a one-stage teacher say nothing; they come last.
    instances.sort(key=lambda x: (math.isnan(x.trust), x.trust))
    args.output.mkdir(parents=True, exist_ok=True)
    write_csv(args.output / "trust.csv", instances)
    coco = coco_annotations(instances, images, list(classes))
    (args.output / "trust.json").write_text(json.dumps(coco))
    title = f"{args.dataset}, seen by {args.weights} (alpha {args.alpha})"
    write_page(args.output, title, instances, images, args.pictures)
    if truth:
        print(found_errors([x for x in instances if x.kind == OBJECT], truth))
    skipped = len(records) - len(images)
    print(
        f"{len(instances)} objects and false alarms, {skipped} images skipped: see "
        f"{args.output / 'index.html'}"
    )


def read_truth(path: Path, records: list[dict]) -> dict:
    """Correct labels in COCO's format; has to have all images of the data set."""
    truth = read_coco_json(path)
    known = {x["file_name"] for x in truth["images"]}
    for record in records:
        name_among(known, record["file_name"])
    return truth


def look(
    teacher: Teacher, record: dict, example: dict, classes: list[str], args
) -> tuple[list[Instance], SeenImage]:
    """The objects of one image and the teacher's false alarms on it, and all that it detects."""
    (weights,) = object_weights(teacher, [example], teacher.wrapper.input_format, args.alpha)
    truth = example["instances"]
    height, width = example["image"].shape[-2:]
    shown = truth.gt_boxes.clone()
    shown.scale(record["width"] / width, record["height"] / height)
    boxes = shown.tensor
    found = [
        Instance(OBJECT, weight, classes[category], record["file_name"], *box)
        for weight, category, box in zip(
            weights.tolist(), truth.gt_classes.tolist(), boxes.tolist()
        )
    ]
    with torch.no_grad():
        detections = teacher.model([example])[0]["instances"].to("cpu")
    ignored = [
        BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
        for x in record["annotations"]
        if x.get("iscrowd")
    ]
    regions = torch.tensor(ignored).reshape(-1, 4)
    alarms = detections[false_alarms(detections, boxes, regions, args.score, args.iou)]
    doubts = loss_to_weight(-torch.log1p(-alarms.scores), args.alpha)
    found += [
        Instance(FALSE_ALARM, weight, classes[category], record["file_name"], *box)
        for weight, category, box in zip(
            doubts.tolist(), alarms.pred_classes.tolist(), alarms.pred_boxes.tensor.tolist()
        )
    ]
    sure = detections[detections.scores >= args.score]
    image = SeenImage(record["file_name"], record["width"], record["height"])
    for category, score, box in zip(
        sure.pred_classes.tolist(), sure.scores.tolist(), sure.pred_boxes.tensor.tolist()
    ):
        image.detections.append({"category": classes[category], "score": score, "box": box})
    return found, image


def false_alarms(
    detections: Instances, objects: Tensor, ignored: Tensor, score: float, iou: float
) -> Tensor:
    """Which detections are confident, overlap no object (M, 4), whatever its class, and lie in no
    region (R, 4) to be ignored.
    """
    overlap = pairwise_iou(detections.pred_boxes, Boxes(objects))
    inside = pairwise_ioa(Boxes(ignored), detections.pred_boxes)
    accounted = (overlap >= iou).any(1) | (inside >= iou).any(0)
    return (detections.scores >= score) & ~accounted


def found_errors(objects: list[Instance], truth: dict) -> str:
    """How many of the least trusted objects have wrong labels, next to how many of all."""
    names = {x["id"]: x["name"] for x in truth["categories"]}
    images = {x["id"]: x for x in truth["images"]}
    right = defaultdict(list)
    for label in truth["annotations"]:
        image = images[label["image_id"]]
        x, y, w, h = label["bbox"]
        corners = (x, y, min(x + w, image["width"]), min(y + h, image["height"]))
        right[image["file_name"], names[label["category_id"]]].append(corners)
    known, wrong = {x["file_name"] for x in truth["images"]}, []
    for x in objects:
        boxes = right.get((name_among(known, x.file_name), x.category), torch.zeros(0, 4))
        overlap = pairwise_iou(Boxes([x.box]), Boxes(boxes))
        wrong.append(not (overlap > SAME_BOX).any())
    count = max(round(LEAST_TRUSTED * len(objects)), 1)
    return (
        f"{sum(wrong)} of {len(wrong)} labels are wrong ({mean(wrong):.1%}), and of the least "
        f"trusted {LEAST_TRUSTED:.0%} {sum(wrong[:count])} of {count} ({mean(wrong[:count]):.1%})."
    )


def name_among(known: set[str], path: str) -> str:
    """Which of the names, relative to a folder of images, a path ends with; the longest one."""
    parts = Path(path).parts
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name in known:
            return name
    raise ValueError(f"--truth has no image {path}: it needs the same images as the data set.")


def write_csv(path: Path, instances: list[Instance]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Instance)])
        writer.writeheader()
        writer.writerows(asdict(x) for x in instances)
