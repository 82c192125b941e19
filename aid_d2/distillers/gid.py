"""General instance distillation (GID; Dai et al., *General Instance Distillation for Object
Detection*, CVPR 2021, arXiv 2103.02340).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from detectron2.config import CfgNode as CN
from detectron2.structures import Boxes, pairwise_ioa

from ..layers.adapters import identity_conv
from ..structures import DensePredictions, DistillBatch, pool_boxes
from .base import DISTILLER_REGISTRY, Distiller, check_levels_double

SELECTIONS = ("paper", "positive", "semi_positive", "negative")

# RoIAlign of an instance.
_POOLED_SIZE, _SAMPLING_RATIO = 10, 2
# Narrower boxes, in pixels, are no instances. One that overlaps no anchor would make every such
# anchor positive in an assigner that gives each object its best anchors.
_MIN_SIDE = 1.0
# Share of an instance that lies in an object: above the first it is semi-positive, below the second
# negative (author's code).
_INSIDE, _OUTSIDE = 0.7, 0.3


def disagreement(
    student_logits: Tensor, teacher_logits: Tensor, student_boxes: Tensor, teacher_boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """``P_GI = max_c |P_t - P_s|``, and as B_GI the box of whoever has the higher ``max_c P``; the
    student's where equal.

    Args:
        student_logits, teacher_logits: (N, R, K), P = sigmoid(logits).
        student_boxes, teacher_boxes: (N, R, 4) decoded.

    Returns:
        P_GI (N, R) and B_GI (N, R, 4).
    """
    student, teacher = student_logits.sigmoid(), teacher_logits.sigmoid()
    teacher_higher = teacher.amax(-1, keepdim=True) > student.amax(-1, keepdim=True)
    boxes = torch.where(teacher_higher, teacher_boxes, student_boxes)
    return (teacher - student).abs().amax(-1), boxes


def clip_boxes(boxes: Tensor, image_sizes: list[tuple[int, int]]) -> Tensor:
    """Boxes (N, R, 4), those of each image clipped to its (height, width)."""
    limits = boxes.new_tensor([(width, height, width, height) for height, width in image_sizes])
    return boxes.clamp(min=0).minimum(limits[:, None])


def select_instances(
    scores: Tensor, boxes: Tensor, threshold: float, count: int, candidates: int
) -> list[Tensor]:
    """``NMS(P_GI, B_GI)[:count]`` of each image, whatever the class.

    Only the boxes of highest score take part in the NMS. It is that of all boxes if `count` of them
    survive, for a box depends on those above it alone; else the result is the beginning of it.

    Args:
        scores: P_GI (N, R).
        boxes: B_GI (N, R, 4) x1 y1 x2 y2, pixels. Narrow and empty ones are left out.
        threshold: a box goes if its IoU with a better one is higher.
        count: boxes kept in an image.
        candidates: boxes of an image that take part.

    Returns:
        per image the indices into R, best first.
    """
    large = (boxes[..., 2:] - boxes[..., :2]).amin(-1) >= _MIN_SIDE
    scores, index = scores.masked_fill(~large, -1).topk(min(candidates, scores.shape[1]), dim=1)
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    selected = []
    for score, box, anchor in zip(scores, boxes, index):
        real = score >= 0
        kept = nms(box[real], score[real], threshold)[:count]
        selected.append(anchor[real][kept])
    return selected


def instance_kinds(boxes: Tensor, positive: Tensor, objects: Tensor) -> dict[str, Tensor]:
    """The kinds of instances that the paper compares in an ablation.

    Args:
        boxes: (B, 4) instances of an image.
        positive: (B,) bool, whether the anchor of the instance is positive for an object.
        objects: (m, 4) boxes of the objects.

    Returns:
        (B,) bool by kind. Others are semi-positive if more than 0.7 of their area is inside one
        object, and negative if less than 0.3 is.
    """
    share = pairwise_ioa(Boxes(objects), Boxes(boxes))
    return {
        "positive": positive,
        "semi_positive": ~positive & (share > _INSIDE).any(0),
        "negative": ~positive & ~(share >= _OUTSIDE).any(0),
    }


def feature_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """``sum_i w_i ||t_i - s_i||^2 / (n h w)``, a sum over channels.

    Args:
        student, teacher: (n, C, h, w) features of the instances; n may be 0.
        weight: (n,) of AID.
    """
    squared = weight[:, None, None, None] * (teacher - student) ** 2
    area = student.shape[2] * student.shape[3]
    return squared.sum() / (max(len(student), 1) * area)


def relative_distances(x: Tensor) -> Tensor:
    """``||x_i - x_j|| / psi(x)``, psi the mean distance of all pairs.

    Args:
        x: (n, D), n > 1. A squared distance counts as at least 1e-12.

    Returns:
        (n, n) with a diagonal of 0.
    """
    n = len(x)
    # The products give the distances without a tensor of n x n x D, and double precision keeps
    # those of near instances, which are differences of large products.
    double = x.double()
    products = double @ double.T
    squares = products.diagonal()
    squared = squares[:, None] + squares - 2 * products
    others = 1 - torch.eye(n, dtype=squared.dtype, device=x.device)
    distance = others * squared.clamp(min=1e-12).sqrt()
    return (distance / (distance.sum() / (n * n - n))).to(x.dtype)


def relation_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """``sum_ij min(w_i, w_j) SmoothL1(d_ij(s), d_ij(t)) / (n^2 - n)``, d the relative distances and
    beta 1.

    Args:
        student, teacher: (n, D) features of the instances; with n < 3 the loss is 0, since the only
            distance is also the mean.
        weight: (n,) of AID.
    """
    n = len(student)
    if n < 3:
        return student.sum() * 0
    difference = F.smooth_l1_loss(
        relative_distances(student), relative_distances(teacher), reduction="none"
    )
    return (torch.minimum(weight[:, None], weight) * difference).sum() / (n * n - n)


def classification_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """``sum_i w_i sum_c BCE(sigmoid(s_ic), sigmoid(t_ic)) / P``.

    Args:
        student, teacher: logits (P, K) of the anchors in the mask; P may be 0.
        weight: (P,) of AID.
    """
    loss = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none").sum(-1)
    return (weight * loss).sum() / max(len(student), 1)


def regression_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """``sum_i w_i ||s_i - t_i||_1 / P``.

    Args:
        student, teacher: deltas (P, 4) of the anchors in the mask; P may be 0.
        weight: (P,) of AID.
    """
    return (weight * (student - teacher).abs().sum(-1)).sum() / max(len(student), 1)


def box_deltas(predictions: DensePredictions, image: Tensor, anchor: Tensor) -> Tensor:
    """What a detector says of the boxes of P anchors, in its own units.

    Args:
        predictions: of all anchors.
        image, anchor: (P,) indices of the anchors.

    Returns:
        (P, 4) the raw output; where that is logits of distributions (GFL), the expected distances
        in strides.
    """
    raw = predictions.regression[image, anchor]
    if raw.shape[-1] == 4:
        return raw
    anchors = predictions.anchors[anchor]
    return predictions.transform.get_deltas(
        anchors, predictions.transform.apply_deltas(raw, anchors)
    )


@DISTILLER_REGISTRY.register()
class GID(Distiller):
    """Imitation of features, relations and responses where the two detectors disagree.

    Of each image the general instances (GI) are the boxes on whose scores student and teacher
    differ most, objects or not. With t and s their RoIAligned features, the student's from maps
    adapted by one 3x3 convolution for all levels, M the anchors that the student's own assigner
    makes positive for the GIs as objects, z logits and r box deltas:

        L_feature  = sum ||t_i - s_i||^2 / (100 n)
        L_relation = sum_ij SmoothL1(||s_i - s_j|| / psi(s), ||t_i - t_j|| / psi(t)) / (n^2 - n)
        L_cls      = sum_M BCE(sigmoid(z_s), sigmoid(z_t)) / |M|
        L_box      = sum_M ||r_s - r_t||_1 / |M|

    n, psi and M are of all images on a GPU, so that instances of different images are related too.
    AID's weight of a GI is the mean of its map inside the box; it multiplies the feature term, the
    smaller one of two GIs their relation, and the weight of an anchor its response.

    Scores are the sigmoid of the class logits, for FCOS without centerness, which takes no part in
    the responses either. In Faster R-CNN, logits and deltas are those of the RPN, as published. GFL
    came later: its deltas are the expected distances, since equal distributions can have different
    logits. Boxes are clipped to the image, and boxes with nothing there are no instances.
    """

    needs_predictions = True

    @staticmethod
    def config():
        node = CN()
        # lambda of each part.
        node.FEATURE_WEIGHT = 5e-4
        node.RELATION_WEIGHT = 40.0
        node.CLS_WEIGHT = 0.1
        node.BOX_WEIGHT = 1.0
        # Which of the selected instances count: `paper` takes all. The others are of the paper's
        # ablation and of its author's Detectron2 code, and leave out the rest after the selection:
        # `positive` those whose anchor is positive for an object, `semi_positive` others that are
        # inside an object, `negative` others outside.
        node.SELECTION = "paper"
        # Instances in an image, and the IoU of the NMS that selects them.
        node.NUM_INSTANCES = 10
        node.NMS_THRESH = 0.3
        # Boxes of an image that take part in it, those of highest disagreement (author's code).
        node.NMS_CANDIDATES = 3000
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        if node.SELECTION not in SELECTIONS:
            raise ValueError(
                f"DISTILL.GID.SELECTION is {node.SELECTION!r}; choose one of {SELECTIONS}."
            )
        check_levels_double("GID", context)
        channels = {(pair.student_channels, pair.teacher_channels) for pair in context.pairs}
        if len(channels) > 1:
            raise ValueError(
                "DISTILL.METHODS: GID has one adapter for all levels, and theirs differ in "
                f"(student, teacher) channels: {sorted(channels)}. Use detectors with an FPN, or a "
                "method that adapts each level, such as AttentionGuided."
            )
        self.node = node
        self.wrapper = context.student
        self.adapter = identity_conv(*channels.pop(), kernel_size=3)

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        student, teacher, weights = batch.student, batch.teacher, batch.weights
        boxes = self._instances(batch)
        adapted = {stride: self.adapter(x) for stride, x in student.features.items()}
        s, t = (
            pool_boxes(maps, boxes, _POOLED_SIZE, _SAMPLING_RATIO)
            for maps in (adapted, teacher.features)
        )
        of_box = weights.per_box(boxes)
        masked = self._mask(batch, boxes).nonzero(as_tuple=True)
        of_anchor = weights.per_anchor(student.predictions.levels)[masked]
        own, theirs = (x.predictions.logits[masked] for x in (student, teacher))
        deltas, target = (box_deltas(x.predictions, *masked) for x in (student, teacher))
        losses = {
            "feature": feature_loss(s, t, of_box),
            "relation": relation_loss(s.flatten(1), t.flatten(1), of_box),
            "cls": classification_loss(own, theirs, of_anchor),
            "box": regression_loss(deltas, target, of_anchor),
        }
        return {part: self.node[f"{part.upper()}_WEIGHT"] * x for part, x in losses.items()}

    def _instances(self, batch: DistillBatch) -> list[Tensor]:
        """Boxes (B_i, 4) of the general instances of each image."""
        mine, theirs = batch.student.predictions, batch.teacher.predictions
        # `boxes` is kept for whoever asks next, and then with gradient.
        scores, boxes = disagreement(
            mine.logits.detach(), theirs.logits, mine.boxes.detach(), theirs.boxes
        )
        objects, node = batch.objects, self.node
        boxes = clip_boxes(boxes, objects.image_sizes)
        selected = select_instances(
            scores, boxes, node.NMS_THRESH, node.NUM_INSTANCES, node.NMS_CANDIDATES
        )
        instances = [x[index] for x, index in zip(boxes, selected)]
        if node.SELECTION == "paper":
            return instances
        positive = self.wrapper.matched_idxs(mine, objects) >= 0
        kinds = map(
            instance_kinds,
            instances,
            [x[index] for x, index in zip(positive, selected)],
            objects.boxes.split(objects.counts),
        )
        return [x[kind[node.SELECTION]] for x, kind in zip(instances, kinds)]

    def _mask(self, batch: DistillBatch, boxes: list[Tensor]) -> Tensor:
        """(N, R) bool, the anchors that are positive for the instances as ground truth."""
        instances = torch.cat(boxes)
        as_objects = replace(
            batch.objects,
            boxes=instances,
            classes=torch.zeros(len(instances), dtype=torch.int64, device=instances.device),
            counts=[len(x) for x in boxes],
        )
        return self.wrapper.matched_idxs(batch.student.predictions, as_objects) >= 0
