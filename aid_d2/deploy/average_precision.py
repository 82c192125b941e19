"""COCO's average precision of anything that detects: a checkpoint or an exported file."""

import contextlib
import io
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from ..data import register_own_data
from ..data.readable import NamingMapper
from ..data.registered import class_names, require_registered, require_same_classes
from .detector import numbered
from .images import read_bgr

logger = logging.getLogger(__name__)

# Boxes (N, 4) as x1 y1 x2 y2 in pixels, scores (N,) and classes (N,).
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def _detect_in_original(
    image: np.ndarray,
    resize: Callable[[np.ndarray], np.ndarray],
    detect: Callable[[np.ndarray], Arrays],
) -> Arrays:
    """Detections of a network that sees resized images, in pixels of the image itself."""
    resized = resize(image)
    boxes, scores, classes = detect(resized)
    scale = np.array(image.shape[1::-1] * 2) / np.array(resized.shape[1::-1] * 2)
    found = scores > 0
    return boxes[found] * scale, scores[found], classes[found]


class TestSet:
    """The images and labels of the first data set in DATASETS.TEST.

    Args:
        cfg: any config with the keys of DATASETS.

    Raises:
        ValueError: there is no data set, or it is not known.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, cfg: CfgNode):
        register_own_data(cfg)
        if not cfg.DATASETS.TEST:
            raise ValueError("--evaluate: DATASETS.TEST of the config is empty.")
        self.name = cfg.DATASETS.TEST[0]
        require_registered([self.name])
        self.records = DatasetCatalog.get(self.name)

    def require_classes(self, names: Sequence[str]) -> None:
        """
        Args:
            names: of a detector's classes.

        Raises:
            ValueError: the data set has other ones; where a detector has them numbered, another
                number.
        """
        known = class_names(self.name)
        if list(names) == numbered(len(known)):
            logger.warning(
                f"The detector's classes have no names: taken as those of {self.name!r}."
            )
            return
        require_same_classes("the detector", names, self.name, known)

    def average_precision(
        self,
        resize: Callable[[np.ndarray], np.ndarray],
        detect: Callable[[np.ndarray], Arrays],
    ) -> float:
        """AP in percent, mean of the IoUs from 0.5 to 0.95.

        Args:
            resize: an image (H, W, 3) uint8 BGR to that of the network.
            detect: called with each resized image.

        Raises:
            ValueError: an image cannot be read.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = COCOEvaluator(self.name, tasks=["bbox"])
        evaluator.reset()
        read = NamingMapper(read_bgr)
        for record in tqdm(self.records, unit="image"):
            image = read(record)
            boxes, scores, classes = (
                torch.as_tensor(x) for x in _detect_in_original(image, resize, detect)
            )
            found = Instances(image.shape[:2], pred_boxes=Boxes(boxes))
            found.scores, found.pred_classes = scores, classes
            evaluator.process([record], [{"instances": found}])
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluator.evaluate()["bbox"]["AP"]
