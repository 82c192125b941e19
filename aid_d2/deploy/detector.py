"""A trained detector, ready to be run."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from ..config import find_config, load_config, plain_student, use_cpu_without_gpu
from ..modeling.teacher import Teacher


class TrainedDetector:
    """A detector that takes images as they are.

    Args:
        cfg: of the detector.
        model: in eval mode.
        class_names: of its classes in order.
        weights: the checkpoint that it comes from.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, class_names: Sequence[str], weights: str = ""
    ):
        self.cfg = cfg
        self.model = model
        self.class_names = list(class_names)
        self.weights = weights

    @classmethod
    def load(
        cls, config_file: str, weights: str = "", opts: Sequence[str] = ()
    ) -> "TrainedDetector":
        """Build and load a detector; of a distilled one the student. No data set is needed.

        Args:
            config_file: a yaml, or the config.yaml in an OUTPUT_DIR.
            weights: its checkpoint; by default MODEL.WEIGHTS of the config.
            opts: KEY VALUE ... on top of the file.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: the weights do not fit.
        """
        cfg = plain_student(load_config(find_config(config_file), opts))
        use_cpu_without_gpu(cfg)
        weights = weights or cfg.MODEL.WEIGHTS
        if not os.path.isfile(weights):
            raise FileNotFoundError(f"--weights: there is no file {weights!r}.")
        detector = Teacher.load(cfg, weights)
        names = detector.class_names
        if names is None:
            names = [f"class {i}" for i in range(detector.wrapper.num_classes or 0)]
        return cls(cfg, detector.model, names, weights)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 BGR at test size, in the channel order of the detector."""
        size = T.ResizeShortestEdge(self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        return size.get_transform(image).apply_image(image)

    def __call__(self, image: np.ndarray, score: float = 0.0) -> Instances:
        """Detect objects in one image.

        Args:
            image: (H, W, 3) uint8 BGR, as OpenCV reads it.
            score: least score.

        Returns:
            `pred_boxes` in pixels of the image, `scores`, `pred_classes`; on the CPU.
        """
        found = detector_postprocess(self.detect(self.resize(image)), *image.shape[:2])
        return found[found.scores >= score]

    def detect(self, resized: np.ndarray) -> Instances:
        """As above, with boxes in pixels of what :meth:`resize` gives."""
        pixels = torch.as_tensor(resized.transpose(2, 0, 1).copy())
        height, width = resized.shape[:2]
        with torch.no_grad():
            (output,) = self.model([{"image": pixels, "height": height, "width": width}])
        return output["instances"].to("cpu")


def show_metadata(class_names: Sequence[str]) -> object:
    """What Detectron2's Visualizer wants to know of the classes."""
    name = "aid_d2/" + ",".join(class_names)
    return MetadataCatalog.get(name).set(thing_classes=list(class_names))
