"""Detectors as graphs of static shapes: one image in, a fixed number of detections out.

`torch.export` takes neither Detectron2's structures nor boxes of varying number. Here each step of
inference keeps a fixed number of candidates, of which those that are none have the score 0.
"""

import logging
from functools import singledispatch

import torch
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from detectron2.modeling.meta_arch import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads
from detectron2.modeling.roi_heads.rotated_fast_rcnn import RROIHeads

from ..modeling.gfl import GFL

logger = logging.getLogger(__name__)


class Graph(nn.Module):
    """Base: normalization and the padding's zeros, around what a detector does.

    Args:
        model: a detector in eval mode.
        canvas: (H, W) that every image is padded to, at the right and below.
        topk: candidates that the NMS sees; 0 for `candidates`.
        suppressed: whether there is an NMS; without, all candidates come out, not cut to the image.

    Attributes:
        candidates: more than the detector has above its least score in practice.
        nms: (IoU, number of detections) of the detector's NMS.
        least_score: what scores less is no candidate.
    """

    candidates: int
    nms: tuple[float, int]
    least_score: float

    def __init__(
        self, model: nn.Module, canvas: tuple[int, int], topk: int = 0, suppressed: bool = True
    ):
        super().__init__()
        self.model, self.topk, self.suppressed = model, topk or self.candidates, suppressed
        height, width = canvas
        self.register_buffer("rows", torch.arange(height)[:, None])
        self.register_buffer("columns", torch.arange(width)[None])

    def forward(self, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            image: (H, W, 3) uint8 on the canvas, in the channel order of the detector.
            valid: (2,) int64, height and width of the image without padding.

        Returns:
            boxes (K, 4) in pixels of the canvas, cut to the image; scores (K,), falling, 0 for what
            is no detection; classes (K,) int64.
        """
        pixels = (image.permute(2, 0, 1).float() - self.model.pixel_mean) / self.model.pixel_std
        inside = (self.rows < valid[0]) & (self.columns < valid[1])
        return self.detect((pixels * inside)[None], valid)

    def detect(self, pixels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, of normalized `pixels` (1, 3, H, W)."""
        raise NotImplementedError

    def select(self, boxes: Tensor, scores: Tensor, classes: Tensor, least: float, valid: Tensor):
        """The detections among candidates (N, 4), (N,), (N,); scores not above `least` are 0."""
        scores = torch.where(scores > least, scores, 0)
        scores, at = scores.topk(min(self.topk, len(scores)))
        boxes, classes = boxes[at], classes[at]
        if not self.suppressed:
            return boxes, scores, classes
        boxes, scores, classes = suppress(boxes, scores, classes, *self.nms)
        boxes = clip(boxes, valid)
        # What is outside of the image goes to the end.
        scores, at = (scores * has_area(boxes)).topk(len(scores))
        return boxes[at], scores, classes[at]

    def features(self, pixels: Tensor, names: list[str]) -> list[Tensor]:
        """Maps of the backbone."""
        maps = self.model.backbone(pixels)
        return [maps[name] for name in names]


class DenseGraph(Graph):
    """RetinaNet, FCOS and GFL."""

    candidates = 5000  # all: 1000 of each level

    def __init__(self, model: DenseDetector, canvas: tuple[int, int], *args, **kwargs):
        super().__init__(model, canvas, *args, **kwargs)
        self.nms = model.test_nms_thresh, model.max_detections_per_image
        self.least_score = model.test_score_thresh
        blank = torch.zeros(1, 3, *canvas, device=model.device)
        with torch.no_grad():
            maps = self.features(blank, model.head_in_features)
        self.anchors = [x.tensor for x in model.anchor_generator(maps)]

    def detect(self, pixels, valid):
        model = self.model
        predictions = model.head(self.features(pixels, model.head_in_features))
        scores, deltas = dense_scores(model, predictions)
        candidates = []
        for score, delta, anchors in zip(scores, deltas, self.anchors):
            values, at = score[0].flatten().topk(min(score.numel(), model.test_topk_candidates))
            place = at // model.num_classes
            boxes = model.box2box_transform.apply_deltas(delta[0][place], anchors[place])
            candidates.append((boxes, values, at % model.num_classes))
        boxes, scores, classes = (torch.cat(x) for x in zip(*candidates))
        return self.select(boxes, scores, classes, self.least_score, valid)


@singledispatch
def dense_scores(model: DenseDetector, predictions) -> tuple[list[Tensor], list[Tensor]]:
    """Scores (1, R, K) and box deltas (1, R, D) of each level."""
    raise NotImplementedError(
        f"A {type(model).__name__} cannot be exported: RetinaNet, FCOS, GFL and Faster R-CNN can."
    )


@dense_scores.register
def _(model: RetinaNet, predictions):
    logits, deltas = model._transpose_dense_predictions(predictions, [model.num_classes, 4])
    return [x.sigmoid() for x in logits], deltas


@dense_scores.register
def _(model: FCOS, predictions):
    logits, deltas, centerness = model._transpose_dense_predictions(
        predictions, [model.num_classes, 4, 1]
    )
    return [(x.sigmoid() * y.sigmoid()).sqrt() for x, y in zip(logits, centerness)], deltas


@dense_scores.register
def _(model: GFL, predictions):
    logits, distributions = model._transpose_dense_predictions(
        predictions, [model.num_classes, 4 * (model.reg_max + 1)]
    )
    return [x.sigmoid() for x in logits], distributions


class TwoStageGraph(Graph):
    """Faster R-CNN with a feature pyramid; of a Mask R-CNN the boxes."""

    candidates = 1000

    def __init__(self, model: GeneralizedRCNN, canvas: tuple[int, int], *args, **kwargs):
        super().__init__(model, canvas, *args, **kwargs)
        predictor = model.roi_heads.box_predictor
        self.nms = predictor.test_nms_thresh, predictor.test_topk_per_image
        self.least_score = predictor.test_score_thresh
        blank = torch.zeros(1, 3, *canvas, device=model.device)
        rpn = model.proposal_generator
        with torch.no_grad():
            maps = self.features(blank, rpn.in_features)
        self.anchors = [x.tensor for x in rpn.anchor_generator(maps)]

    def detect(self, pixels, valid):
        rpn, heads = self.model.proposal_generator, self.model.roi_heads
        maps = self.model.backbone(pixels)
        proposals, objectness = self.propose([maps[x] for x in rpn.in_features], valid)
        pooled = pool(heads.box_pooler, [maps[x] for x in heads.box_in_features], proposals)
        predictor = heads.box_predictor
        logits, deltas = predictor(heads.box_head(pooled))
        scores = logits.softmax(-1)[:, :-1] * (objectness > 0)[:, None]
        boxes = predictor.box2box_transform.apply_deltas(deltas, proposals)
        count, classes = scores.shape
        boxes = boxes.reshape(count, -1, 4).expand(count, classes, 4).reshape(-1, 4)
        labels = torch.arange(classes, device=boxes.device).repeat(count)
        return self.select(clip(boxes, valid), scores.flatten(), labels, self.least_score, valid)

    def propose(self, maps: list[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """The proposals (P, 4) of the RPN and their objectness (P,), 0 for what is none."""
        rpn = self.model.proposal_generator
        candidates = []
        logits, deltas = rpn.rpn_head(maps)
        for level, (logit, delta, anchors) in enumerate(zip(logits, deltas, self.anchors)):
            logit = logit[0].permute(1, 2, 0).flatten()
            delta = delta[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            values, at = logit.topk(min(logit.numel(), rpn.pre_nms_topk[False]))
            boxes = clip(rpn.box2box_transform.apply_deltas(delta[at], anchors[at]), valid)
            # The order of the logits, above 0.
            large = has_area(boxes, rpn.min_box_size)
            candidates.append((boxes, values.sigmoid() * large, at * 0 + level))
        boxes, scores, levels = (torch.cat(x) for x in zip(*candidates))
        boxes, scores, _ = suppress(boxes, scores, levels, rpn.nms_thresh, rpn.post_nms_topk[False])
        return boxes, scores


def clip(boxes: Tensor, valid: Tensor) -> Tensor:
    """Boxes (N, 4) cut to an image of height and width `valid`."""
    limit = valid.flip(0).repeat(2).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def has_area(boxes: Tensor, least: float = 0.0) -> Tensor:
    """Which boxes (N, 4) are wider and higher than `least` pixels."""
    return (boxes[:, 2:] - boxes[:, :2] > least).all(-1)


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression within each group, of those with a score above 0.

    Returns:
        boxes (count, 4), scores (count,) and groups (count,), by falling score; zeros follow.
    """
    # Boxes of different groups are moved apart; what has no score goes away by itself at one point.
    apart = groups.to(boxes.dtype)[:, None] * (boxes.max() + 1)
    keep = nms(torch.where(scores[:, None] > 0, boxes + apart, -1.0), scores, threshold)
    # What is missing in the count is one more candidate, which is none.
    keep = torch.cat([keep, torch.full_like(scores[:1], len(scores)).long().expand(count)])[:count]
    kept = torch.cat([scores, scores[:1] * 0])[keep]
    boxes = torch.cat([boxes, boxes[:1] * 0])[keep]
    groups = torch.cat([groups, groups[:1] * 0])[keep]
    return boxes * (kept > 0)[:, None], kept, groups * (kept > 0)


def pool(pooler: nn.Module, maps: list[Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign of each box on its level: on the others the box is a point, and the sum is taken."""
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0)
    level = torch.floor(
        pooler.canonical_level + torch.log2(area.sqrt() / pooler.canonical_box_size + 1e-8)
    ).clamp(pooler.min_level, pooler.max_level)
    result = 0
    for index, (features, layer) in enumerate(zip(maps, pooler.level_poolers)):
        here = (level == pooler.min_level + index)[:, None]
        pooled = roi_align(
            features,
            [boxes * here],
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        # Not times `here`: some runtimes pool a point to NaN.
        result = result + torch.where(here[..., None, None], pooled, 0)
    return result


def build_graph(
    model: nn.Module, canvas: tuple[int, int], topk: int = 0, suppressed: bool = True
) -> Graph:
    """The graph of a detector; arguments as those of :class:`Graph`.

    Raises:
        NotImplementedError: the detector is of a kind that has none.
    """
    if isinstance(model, DenseDetector):
        return DenseGraph(model, canvas, topk, suppressed).eval()
    heads = getattr(model, "roi_heads", None)
    two_stage = isinstance(heads, StandardROIHeads) and isinstance(model.proposal_generator, RPN)
    if not two_stage or isinstance(heads, (CascadeROIHeads, RROIHeads)):
        raise NotImplementedError(
            f"A {type(model).__name__} with {type(heads).__name__} cannot be exported: RetinaNet, "
            "FCOS, GFL and Faster R-CNN with a feature pyramid can."
        )
    if heads.mask_on or heads.keypoint_on:
        logger.warning("The file has boxes alone: masks and keypoints are left out.")
    return TwoStageGraph(model, canvas, topk, suppressed).eval()
