"""Detectron2's evaluator interface over KITTI's metrics."""

import itertools
import json
import logging

import numpy as np
from tabulate import tabulate

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .frames import Detections, ground_truth_of
from .kitti import DIFFICULTIES, MIN_OVERLAP, kitti_ap
from .voc import voc_ap

logger = logging.getLogger(__name__)


class KITTIEvaluator(DatasetEvaluator):
    """KITTI's benchmark and the AID paper's metric, to be used beside `COCOEvaluator`.

    The results, 0 to 100 or NaN where there are no objects, are under `kitti`:

    * `R40_<easy|moderate|hard>-<class>` and `R11_...`: :func:`kitti_ap` for those of Car,
      Pedestrian and Cyclist that the data set has. Without `-<class>` R40's mean over them.
    * `VOC_AP50-<class>`: :func:`voc_ap` for each class. `VOC_AP50` is the mean, AID's mAP.

    Args:
        dataset_name: registered, in KITTI's layout.
        distributed: collect the detections of all processes, and evaluate in the main one.
    """

    def __init__(self, dataset_name: str, distributed: bool = True):
        metadata = MetadataCatalog.get(dataset_name)
        with PathManager.open(metadata.json_file) as file:
            self._truths = ground_truth_of(json.load(file))
        self._classes = np.array(metadata.thing_classes)
        self._distributed = distributed

    def reset(self):
        self._found = []

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            detections = Detections(
                boxes=instances.pred_boxes.tensor.double().numpy(),
                types=self._classes[instances.pred_classes.numpy()],
                scores=instances.scores.double().numpy(),
            )
            self._found.append((image["image_id"], detections))

    def evaluate(self):
        found = self._found
        if self._distributed:
            comm.synchronize()
            found = list(itertools.chain(*comm.gather(found, dst=0)))
            if not comm.is_main_process():
                return {}
        found = dict(found)
        truths = list(self._truths.values())
        detections = [found.get(image, Detections.none()) for image in self._truths]
        results = evaluate_frames(truths, detections, self._classes.tolist())
        logger.info("KITTI's metrics in percent:\n" + results_table(results, self._classes))
        return {"kitti": results}


def evaluate_frames(truths, detections, classes: list[str]) -> dict[str, float]:
    """All metrics by the names that :class:`KITTIEvaluator` gives them, means first.

    Args:
        truths: :class:`GroundTruth` of each frame.
        detections: :class:`Detections` of the same frames.
        classes: to be evaluated; labels of other types are ignore regions in VOC's metric.
    """
    means, per_class = {}, {}
    for level, difficulty in DIFFICULTIES.items():
        values = []
        for name in classes:
            if name in MIN_OVERLAP:
                ap = kitti_ap(truths, detections, name, difficulty)
                per_class |= {f"{kind}_{level}-{name}": value for kind, value in ap.items()}
                values.append(ap["R40"])
        means[f"R40_{level}"] = _mean(values)
    voc = {f"VOC_AP50-{name}": voc_ap(truths, detections, name, classes) for name in classes}
    means["VOC_AP50"] = _mean(list(voc.values()))
    return means | per_class | voc


def results_table(results: dict[str, float], classes) -> str:
    """The results as text, a row for each class and one for their means."""
    columns = [f"{kind}_{level}" for kind in ("R40", "R11") for level in DIFFICULTIES]
    columns.append("VOC_AP50")
    rows = [[name, *(results.get(f"{x}-{name}") for x in columns)] for name in classes]
    rows.append(["mean", *(results.get(x) for x in columns)])
    return tabulate(rows, headers=["", *columns], tablefmt="pipe", floatfmt=".2f")


def _mean(values: list[float]) -> float:
    """Mean over the classes that have objects; NaN if none has."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
