"""A trained detector, ready to be run."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

from ..config import load_config, plain_student, show_from, use_cpu_without_gpu
from ..modeling.precision import choose_precision, fold_norms
from ..modeling.teacher import load_detector
from ..modeling.wrappers import wrap
from .complexity import complexity


class TrainedDetector:
    """A detector that takes images as they are.

    Args:
        cfg: of the detector.
        model: in eval mode.
        class_names: of its classes in order; by default `class 0` and so on.
        weights: the checkpoint that it comes from.

    Attributes:
        named: whether the names of its classes are known.
        dtype: that autocast computes in.
    """

    dtype = torch.float32

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        class_names: Sequence[str] | None = None,
        weights: str = "",
    ):
        self.cfg = cfg
        self.model = model
        self.named = class_names is not None
        self.class_names = list(class_names or numbered(wrap(model).num_classes or 0))
        self.weights = weights

    @classmethod
    def load(
        cls,
        config_file: str,
        weights: str = "",
        opts: Sequence[str] = (),
        score: float | None = None,
    ) -> "TrainedDetector":
        """Build and load a detector; of a distilled one the student. No data set is needed.

        Args:
            config_file: a yaml, or the config.yaml in an OUTPUT_DIR.
            weights: its checkpoint; by default MODEL.WEIGHTS of the config.
            opts: KEY VALUE ... on top of the file.
            score: that it shows detections from, if that is less than its config's.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: the weights do not fit.
        """
        cfg = detector_config(config_file, opts)
        if score is not None:
            show_from(cfg, score)
        weights = local_weights(weights or cfg.MODEL.WEIGHTS)
        model, class_names = load_detector(cfg, weights)
        return cls(cfg, model.eval().requires_grad_(False), class_names, weights)

    def speed_up(self) -> None:
        """Fold the norms, order by channels last, and compute in bfloat16 where that is fast."""
        fold_norms(self.model)
        self.dtype = choose_precision("auto", self.model.device)

    def canvas(self, sizes: Iterable[Sequence[int]]) -> tuple[int, int]:
        """The (H, W) that Detectron2 pads images of these (H, W) to, once resized, as one batch."""
        divisor = max(self.model.backbone.size_divisibility, 1)
        least, most = self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST
        if least:  # Detectron2's 0: as they are
            sizes = [T.ResizeShortestEdge.get_output_shape(*size, least, most) for size in sizes]
        height, width = (-(-max(sides) // divisor) * divisor for sides in zip(*sizes))
        return height, width

    def complexity(self, size: Sequence[int]) -> tuple[int, int]:
        """Trainable parameters, and multiply-accumulates of an image of (H, W) pixels."""
        cfg = self.cfg.clone()
        cfg.MODEL.WEIGHTS = self.weights  # Networks of timm then look for no ImageNet weights.
        return complexity(cfg, size, cfg.MODEL.RPN.POST_NMS_TOPK_TEST)["total"]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 BGR at test size, in the channel order of the detector."""
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        size = T.ResizeShortestEdge(self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        return size.get_transform(image).apply_image(image)

    def __call__(self, image: np.ndarray, score: float = 0.0) -> Instances:
        """Detect objects in one image.

        Args:
            image: (H, W, 3) uint8 BGR, as OpenCV reads it.
            score: least score.

        Returns:
            `pred_boxes` in pixels of the image, `scores`, `pred_classes`; on the CPU.
        """
        found = self.detect(self.resize(image), shown=image.shape[:2])
        return found[found.scores >= score]

    def detect(
        self,
        resized: np.ndarray,
        canvas: Sequence[int] | None = None,
        shown: Sequence[int] | None = None,
    ) -> Instances:
        """As above, of what :meth:`resize` gives.

        Args:
            resized: (H, W, 3).
            canvas: (H, W) that the image is padded to; by default as little as Detectron2 pads.
            shown: (H, W) of the image that boxes are in pixels of; by default the resized one.
        """
        pixels = torch.as_tensor(resized.transpose(2, 0, 1).copy())
        height, width = shown or resized.shape[:2]
        fast = self.dtype is not torch.float32
        batch = [{"image": pixels, "height": height, "width": width}]
        if canvas is not None:
            # Detectron2 pads the images of a batch to the largest one.
            batch.append({"image": pixels.new_zeros(3, *canvas)})
        with torch.no_grad(), torch.autocast(self.model.device.type, self.dtype, enabled=fast):
            output = self.model(batch)[0]
        return output["instances"].to("cpu")

    def arrays(
        self, resized: np.ndarray, canvas: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same as boxes (N, 4), scores (N,) and classes (N,), which exported files return."""
        found = self.detect(resized, canvas)
        boxes, scores = found.pred_boxes.tensor.float(), found.scores.float()
        return boxes.numpy(), scores.numpy(), found.pred_classes.numpy()


def detector_config(config_file: str, opts: Sequence[str]) -> CfgNode:
    """The config of a detector, of a distilled one the student's, on the device that there is.

    Args:
        config_file: a yaml.
        opts: KEY VALUE ... on top of the file.
    """
    cfg = plain_student(load_config(config_file, opts))
    use_cpu_without_gpu(cfg)
    return cfg


def local_weights(path: str) -> str:
    """Local path of a file of weights, downloaded if it is on the internet.

    Raises:
        FileNotFoundError: there is no such file.
    """
    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):
        raise FileNotFoundError(f"--weights or MODEL.WEIGHTS: there is no file {path!r}.")
    return local


def numbered(count: int) -> list[str]:
    """What classes are called whose names are not known."""
    return [f"class {i}" for i in range(count)]
