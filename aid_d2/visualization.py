"""Pictures of detections, and of how far AID weights the teacher on each object."""

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib import colormaps
from torch import Tensor

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.utils.visualizer import Visualizer

from .aid import loss_to_weight, object_loss
from .modeling.teacher import Teacher
from .structures import Objects


def labeled_input(cfg: CfgNode, dataset_dict: dict) -> dict:
    """One data set entry as a training input, at test resolution and without augmentation."""
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = DatasetMapper(is_train=True, augmentations=[resize], image_format=cfg.INPUT.FORMAT)
    return mapper(dataset_dict)


def object_weights(
    teacher: Teacher, batched_inputs: list[dict], input_format: str, alpha: float
) -> list[Tensor]:
    """AID's `instance` weight of each ground-truth object.

    Args:
        teacher: of a wrapper whose losses AID knows.
        batched_inputs: training inputs, with their `instances`.
        input_format: channel order of their images.
        alpha: of AID.

    Returns:
        per image (M,) in (0, 1]; NaN for an object of which the teacher's losses say nothing.
    """
    objects = Objects.from_inputs(batched_inputs, teacher.model.device)
    outputs = teacher.wrapper.forward_features(batched_inputs, input_format, with_head=True)
    losses = teacher.wrapper.judge(outputs, objects)
    loss, known = object_loss(losses), losses.known_objects
    weights = loss_to_weight(loss, alpha).masked_fill(~known, float("nan"))
    return list(weights.split(objects.counts))


def draw_boxes(
    image: np.ndarray,
    title: str,
    boxes: Tensor,
    labels: Sequence[str],
    values: Sequence[float] | None = None,
    scale: float = 2.0,
) -> np.ndarray:
    """A titled picture of labelled boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        title: written above the image.
        boxes: (M, 4) x1 y1 x2 y2 in pixels of the image.
        labels: M texts.
        values: M numbers in [0, 1] that colour the boxes from red to green; without them all are
            green.
        scale: enlarges the picture.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    values = [1.0] * len(boxes) if values is None else values
    colors = [colormaps["RdYlGn"](float(value))[:3] for value in values]
    visualizer = Visualizer(image, scale=scale)
    picture = visualizer.overlay_instances(
        boxes=boxes.cpu().numpy(), labels=list(labels), assigned_colors=colors
    ).get_image()
    head = np.full((36, picture.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(head, title, (8, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([head, picture])
