"""Dense detectors, and their predictions against ground truth without reduction."""

from functools import partial

import torch
from fvcore.nn import sigmoid_focal_loss, smooth_l1_loss
from torch import Tensor, nn

from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes

from ...layers.iou import giou_loss
from ...layers.matching import gather_matched
from ...structures import (
    BACKGROUND,
    IGNORED,
    DensePredictions,
    LevelShape,
    Objects,
    UnreducedLosses,
    split_levels,
)
from .base import DetectorWrapper

_IOU_LOSSES = {
    "giou": giou_loss,
    "diou": partial(diou_loss, reduction="none"),
    "ciou": partial(ciou_loss, reduction="none"),
}


class DenseWrapper(DetectorWrapper):
    """A wrapper of a detector on Detectron2's `DenseDetector`."""

    @property
    def in_features(self):
        return list(self.model.head_in_features)

    @property
    def num_classes(self):
        return self.model.num_classes

    @property
    def head(self):
        return self.model.head

    @property
    def anchor_generator(self):
        return self.model.anchor_generator

    @property
    def box_transform(self):
        return self.model.box2box_transform

    @property
    def towers(self):
        if not isinstance(self.head, RetinaNetHead):
            return {}
        return {"cls": self.head.cls_subnet, "box": self.head.bbox_subnet}

    def predictions(self, features, head_outputs):
        return dense_predictions(
            self.anchor_generator,
            self.box_transform,
            features,
            head_outputs,
            self.num_classes,
            4 * (self.box_bins or 1),
        )


def _flatten_levels(maps: list[Tensor], values: int) -> Tensor:
    """Per-level maps (N, A x values, H, W) as one float32 (N, R, values), in anchor order."""
    return torch.cat([permute_to_N_HWA_K(x, values) for x in maps], dim=1).float()


def _level_shapes(maps: list[Tensor], strides: list[int], values: int) -> list[LevelShape]:
    """Shapes of per-level maps (N, A x values, H, W)."""
    return [
        LevelShape(stride, *x.shape[-2:], x.shape[1] // values) for x, stride in zip(maps, strides)
    ]


def dense_predictions(
    anchor_generator,
    transform,
    features: dict[int, Tensor],
    head_outputs,
    classes: int,
    values: int,
) -> DensePredictions:
    """A head's predictions, flattened over levels.

    Args:
        anchor_generator, transform: of the detector.
        features: maps (N, C, H, W) per stride, finest first.
        head_outputs: per-level maps of logits (N, A x classes, H', W'), of regression
            (N, A x values, H', W') and, of FCOS alone, of centerness. Padding may make them larger
            than the features.
        classes: logits of an anchor.
        values: regression values of an anchor.
    """
    logits, regression, *centerness = (
        [_cut(x, feature) for x, feature in zip(maps, features.values())] for maps in head_outputs
    )
    return DensePredictions(
        levels=_level_shapes(logits, list(features), classes),
        anchors=Boxes.cat(anchor_generator(list(features.values()))).tensor,
        logits=_flatten_levels(logits, classes),
        regression=_flatten_levels(regression, values),
        transform=transform,
        centerness=_flatten_levels(centerness[0], 1).squeeze(-1) if centerness else None,
    )


def _cut(x: Tensor, feature: Tensor) -> Tensor:
    return x[..., : feature.shape[-2], : feature.shape[-1]]


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels (...) as bool (..., K); none is set for a label outside 0 .. K-1."""
    return labels[..., None] == torch.arange(num_classes, device=labels.device)


def background_loss(cls: Tensor, matched_idxs: Tensor, levels: list[LevelShape]) -> Tensor:
    """Classification loss of the background, per mean number of positive anchors of the level.

    The mean over the batch is the level's negative loss / number of positives; an image and level
    differ from it by their own false alarms. A level counts at least one positive an image.

    Args:
        cls: (N, R) classification loss.
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
        levels: L levels.

    Returns:
        (N, L)
    """
    background = split_levels(cls * (matched_idxs == BACKGROUND), levels)
    positive = split_levels((matched_idxs >= 0).float(), levels)
    per_level = [
        b.flatten(1).sum(1) / (p.sum() / len(cls)).clamp(min=1)
        for b, p in zip(background, positive)
    ]
    return torch.stack(per_level, dim=1)


def focal_losses(
    detector: nn.Module,
    predictions: DensePredictions,
    matched_idxs: Tensor,
    objects: Objects,
    box: Tensor,
) -> UnreducedLosses:
    """Losses of a detector with focal loss, which divides all of them by the positive anchors.

    Args:
        detector: with `num_classes`, `focal_loss_alpha` and `focal_loss_gamma`.
        predictions: its predictions.
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
        objects: the ground truth.
        box: (N, R) box loss; counts where an anchor is positive.
    """
    labels, positive = (
        gather_matched(objects.classes, matched_idxs, matched_idxs),
        matched_idxs >= 0,
    )
    cls = sigmoid_focal_loss(
        predictions.logits,
        one_hot(labels, detector.num_classes).float(),
        alpha=detector.focal_loss_alpha,
        gamma=detector.focal_loss_gamma,
    ).sum(-1) * (matched_idxs != IGNORED)
    return UnreducedLosses(
        levels=predictions.levels,
        cls=cls,
        box=positive * box,
        matched_idxs=matched_idxs,
        factor=torch.ones_like(cls),
        # The detector divides by a running mean of the positives, which no checkpoint keeps.
        image_normalizer=positive.sum(1).clamp(min=1),
        batch_normalizer=positive.sum().clamp(min=1),
        background=background_loss(cls, matched_idxs, predictions.levels),
        objects=objects,
    )


def box_regression_loss(
    box2box_transform, anchors: Tensor, deltas: Tensor, targets: Tensor, kind: str, beta: float
) -> Tensor:
    """Detectron2's dense box regression loss of every box, unreduced.

    Args:
        box2box_transform: of the detector.
        anchors: (..., 4) boxes the deltas start from.
        deltas: (..., 4) predictions.
        targets: (..., 4) boxes to be predicted.
        kind: `smooth_l1`, `giou`, `diou` or `ciou`.
        beta: of the smooth L1 loss; 0 is L1.

    Returns:
        (...)
    """
    shape = deltas.shape[:-1]
    anchors, deltas, targets = (
        x.expand(*shape, 4).reshape(-1, 4) for x in (anchors, deltas, targets)
    )
    if kind == "smooth_l1":
        expected = box2box_transform.get_deltas(anchors, targets)
        loss = smooth_l1_loss(deltas, expected, beta=beta, reduction="none").sum(-1)
    else:
        boxes = box2box_transform.apply_deltas(deltas, anchors)
        loss = _IOU_LOSSES[kind](boxes, targets)
    return loss.view(shape)
