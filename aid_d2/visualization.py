"""Pictures of detections, and of how far AID weights the teacher on each object."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib import colormaps
from torch import Tensor

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from .aid import AID, loss_to_weight, object_loss
from .modeling.teacher import Teacher
from .structures import Objects, UnreducedLosses

_COLORS = colormaps["RdYlGn"]
_GREEN, _GRAY = (26, 152, 80), (190, 190, 190)
_FONT, _TEXT = cv2.FONT_HERSHEY_SIMPLEX, 0.45


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
    losses = _teacher_losses(teacher, batched_inputs, input_format)
    loss, known = object_loss(losses), losses.known_objects
    weights = loss_to_weight(loss, alpha).masked_fill(~known, float("nan"))
    return list(weights.split(losses.objects.counts))


def weight_maps(
    teacher: Teacher, batched_inputs: list[dict], input_format: str, aid: AID
) -> dict[int, Tensor]:
    """AID's weights over the teacher's pyramid, without a student.

    Args:
        teacher, batched_inputs, input_format: see :func:`object_weights`.
        aid: neither `relative` nor `masks`.

    Returns:
        per stride (N, H, W)
    """
    losses = _teacher_losses(teacher, batched_inputs, input_format)
    return {stride: x[:, 0] for stride, x in aid.weights(losses).maps.items()}


def draw_boxes(
    image: np.ndarray,
    title: str,
    boxes: Tensor,
    labels: Sequence[str],
    values: Sequence[float] | None = None,
    scale: float = 2.0,
) -> np.ndarray:
    """A titled picture of labeled boxes, whose labels avoid each other.

    Args:
        image: (H, W, 3) uint8 RGB.
        title: written above the image.
        boxes: (M, 4) x1 y1 x2 y2 in pixels of the image.
        labels: M texts.
        values: M numbers in [0, 1] that color the boxes, with a bar that tells which; NaN is gray.
            Without them all are green.
        scale: enlarges the picture.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    picture = _enlarged(image, scale)
    corners = (boxes.cpu().numpy() * scale).round().astype(int)
    colors = [_GREEN] * len(boxes) if values is None else [_color(value) for value in values]
    for (x1, y1, x2, y2), color in zip(corners.tolist(), colors):
        cv2.rectangle(picture, (x1, y1), (x2, y2), color, 2, cv2.LINE_AA)
    sizes = [cv2.getTextSize(text, _FONT, _TEXT, 1)[0] for text in labels]
    sizes = [(width + 6, height + 8) for width, height in sizes]
    places = place_labels(corners.tolist(), sizes, picture.shape[:2])
    for text, (x, y), (width, height), color in zip(labels, places, sizes, colors):
        cv2.rectangle(picture, (x, y), (x + width, y + height), color, cv2.FILLED)
        at = (x + 3, y + height - 4)
        ink = (0, 0, 0) if sum(color) > 330 else (255, 255, 255)
        cv2.putText(picture, text, at, _FONT, _TEXT, ink, 1, cv2.LINE_AA)
    return np.vstack([_head(title, picture.shape[1], with_bar=values is not None), picture])


def draw_weight_map(
    image: np.ndarray, title: str, weights: Tensor, stride: float, scale: float = 2.0
) -> np.ndarray:
    """A titled picture with the weights of a level over it.

    Args:
        image: (H, W, 3) uint8 RGB.
        title: written above the image.
        weights: (h, w) of the level, in [0, 1].
        stride: of the level, in pixels of the image.
        scale: enlarges the picture.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    picture = _enlarged(image, scale)
    cells = (_COLORS(weights.cpu().numpy())[..., :3] * 255).astype(np.uint8)
    size = [round(side * stride * scale) for side in reversed(weights.shape)]
    colors = cv2.resize(cells, size, interpolation=cv2.INTER_NEAREST)
    colors = colors[: picture.shape[0], : picture.shape[1]]  # without padding
    gray = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = cv2.addWeighted(gray, 0.6, colors, 0.4, 0)
    return np.vstack([_head(title, picture.shape[1], with_bar=True), picture])


def place_labels(
    boxes: Sequence[Sequence[int]],
    sizes: Sequence[tuple[int, int]],
    picture: tuple[int, int],
) -> list[tuple[int, int]]:
    """Where labels go: at their boxes, and not over each other as long as there is room.

    Args:
        boxes: x1 y1 x2 y2 in pixels.
        sizes: (width, height) of each label.
        picture: (height, width).

    Returns:
        the left upper corner of each label, inside the picture if it fits in.
    """
    placed: list[tuple[int, ...]] = []
    for (x1, y1, x2, y2), (width, height) in zip(boxes, sizes):
        # Above its box, below, inside; then ever higher, and ever lower.
        rows = [y1 - height, y2, y1]
        rows += [*range(y1 - 2 * height, -1, -height), *range(y2 + height, picture[0], height)]
        candidates = []
        for y in rows:
            for x in (x1, x2 - width):
                left = max(min(x, picture[1] - width), 0)
                top = max(min(y, picture[0] - height), 0)
                candidates.append((left, top, left + width, top + height))
        free = (x for x in candidates if not any(_overlap(x, other) for other in placed))
        placed.append(next(free, candidates[0]))
    return [(left, top) for left, top, *_ in placed]


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _teacher_losses(
    teacher: Teacher, batched_inputs: list[dict], input_format: str
) -> UnreducedLosses:
    objects = Objects.from_inputs(batched_inputs, teacher.model.device)
    outputs = teacher.wrapper.forward_features(batched_inputs, input_format, with_head=True)
    return teacher.wrapper.judge(outputs, objects)


def _enlarged(image: np.ndarray, scale: float) -> np.ndarray:
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def _color(value: float) -> tuple[int, ...]:
    if math.isnan(value):
        return _GRAY
    return tuple(round(255 * x) for x in _COLORS(float(value))[:3])


def _head(title: str, width: int, with_bar: bool) -> np.ndarray:
    """A white strip with the title and, if asked, the colors of 0 to 1."""
    head = np.full((36, width, 3), 255, dtype=np.uint8)
    cv2.putText(head, title, (8, 24), _FONT, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    if with_bar:
        length = min(100, width // 3)
        bar = (_COLORS(np.linspace(0, 1, length))[None, :, :3] * 255).astype(np.uint8)
        left = width - 20 - length
        head[12:26, left : left + length] = bar
        for text, x in (("0", left - 14), ("1", left + length + 5)):
            cv2.putText(head, text, (x, 24), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return head
