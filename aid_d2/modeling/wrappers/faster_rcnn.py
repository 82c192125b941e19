"""Faster R-CNN (Ren et al., NeurIPS 2015) on a feature pyramid."""

import torch
import torch.nn.functional as F

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes

from ...layers.matching import gather_matched, match_by_iou
from ...structures import BACKGROUND, IGNORED, UnreducedLosses, split_levels
from .base import WRAPPER_REGISTRY, DetectorWrapper
from .dense import box_regression_loss, dense_predictions


@WRAPPER_REGISTRY.register()
class FasterRCNNWrapper(DetectorWrapper):
    """RPN losses of every anchor, and the box head's loss on the ground-truth boxes themselves.

    Nothing is sampled: where the RPN's own loss samples anchors, each counts with the probability
    of being drawn. The box head sees one RoI per object and no proposals, so that a missed or
    misclassified object always has a large loss.
    """

    detector = GeneralizedRCNN
    two_stage = True
    ignoring_parts = {
        "MODEL.PROPOSAL_GENERATOR.NAME": {"RPN": "IgnoringRPN"},
        "MODEL.ROI_HEADS.NAME": {
            "StandardROIHeads": "IgnoringROIHeads",
            "CascadeROIHeads": "IgnoringCascadeROIHeads",
        },
    }

    @property
    def in_features(self):
        return list(self.model.proposal_generator.in_features)

    @property
    def num_classes(self):
        return self.model.roi_heads.num_classes

    @property
    def head(self):
        return self.model.proposal_generator.rpn_head

    @property
    def anchor_generator(self):
        return self.model.proposal_generator.anchor_generator

    @property
    def box_transform(self):
        return self.model.proposal_generator.box2box_transform

    def predictions(self, features, head_outputs):
        return dense_predictions(
            self.anchor_generator, self.box_transform, features, head_outputs, 1, 4
        )

    def assign(self, levels, anchors, objects):
        return match_by_iou(self.model.proposal_generator.anchor_matcher, anchors, objects)

    def score(self, features, boxes):
        heads = self.model.roi_heads
        by_name = {x.name: features[x.stride] for x in self.levels if x.stride in features}
        maps = [by_name[name] for name in heads.box_in_features]
        # RoIAlign has no bfloat16 on a CPU.
        pooled = heads.box_pooler([x.float() for x in maps], [Boxes(x) for x in boxes])
        dtype = maps[0].dtype
        half = dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(pooled.device.type, dtype, enabled=half):
            logits, deltas = heads.box_predictor(heads.box_head(pooled))
        return logits.float(), deltas.float()

    @property
    def box_head_lacks(self):
        heads = self.model.roi_heads
        # A cascade is a StandardROIHeads too, with a list of box heads.
        single = isinstance(heads, StandardROIHeads) and isinstance(
            heads.box_predictor, FastRCNNOutputLayers
        )
        if not single:
            name = type(heads).__name__
            return f"MODEL.ROI_HEADS.NAME StandardROIHeads with one box head, not {name}"
        if getattr(heads.box_predictor, "use_sigmoid_ce", False):  # younger than v0.6
            return "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False, for scores by softmax"
        return None

    @property
    def loss_constants(self):
        parts = self.model.proposal_generator, self.model.roi_heads.box_predictor
        names = ("loss_weight", "box_reg_loss_type", "smooth_l1_beta")
        return {name: [getattr(part, name) for part in parts] for name in names}

    def check_losses(self):
        rpn, heads = self.model.proposal_generator, self.model.roi_heads
        if self.box_head_lacks:
            raise NotImplementedError(
                f"AID needs a Faster R-CNN with {self.box_head_lacks}. Set DISTILL.AID.ENABLED "
                "False for this detector."
            )
        known_maps = set(heads.box_in_features) <= set(rpn.in_features)
        if rpn.anchor_boundary_thresh >= 0 or not known_maps:
            raise NotImplementedError(
                "AID needs a Faster R-CNN with MODEL.RPN.BOUNDARY_THRESH -1 and all of "
                f"MODEL.ROI_HEADS.IN_FEATURES {heads.box_in_features} among MODEL.RPN.IN_FEATURES "
                f"{rpn.in_features}. Set DISTILL.AID.ENABLED False for this detector."
            )

    def unreduced_losses(self, features, head_outputs, objects):
        self.check_losses()
        rpn = self.model.proposal_generator
        predictions = self.predictions(features, head_outputs)
        matched_idxs = self.matched_idxs(predictions, objects)
        positive = matched_idxs >= 0

        cls = F.binary_cross_entropy_with_logits(
            predictions.logits.squeeze(-1), positive.float(), reduction="none"
        )
        cls = cls * (matched_idxs != IGNORED) * rpn.loss_weight.get("loss_rpn_cls", 1.0)
        box = positive * box_regression_loss(
            rpn.box2box_transform,
            predictions.anchors,
            predictions.regression,
            gather_matched(objects.boxes, matched_idxs, predictions.anchors),
            rpn.box_reg_loss_type,
            rpn.smooth_l1_beta,
        )
        per_image = torch.full_like(cls[:, 0], rpn.batch_size_per_image)
        return UnreducedLosses(
            levels=predictions.levels,
            cls=cls,
            box=box * rpn.loss_weight.get("loss_rpn_loc", 1.0),
            matched_idxs=matched_idxs,
            factor=sampling_frequency(
                matched_idxs, rpn.batch_size_per_image, rpn.positive_fraction
            ),
            image_normalizer=per_image,
            batch_normalizer=per_image.sum(),
            background=hardest_background(
                cls, matched_idxs, predictions.levels, rpn.batch_size_per_image
            ),
            objects=objects,
            roi=self._box_head_losses(features, objects),
        )

    def _box_head_losses(self, features, objects):
        """(M,) cross-entropy + box loss of the box head on each object's own box."""
        predictor = self.model.roi_heads.box_predictor
        logits, deltas = self.score(features, objects.boxes.split(objects.counts))
        cls = F.cross_entropy(logits, objects.classes, reduction="none")
        # With a class-agnostic regressor every class has index 0.
        deltas = deltas.unflatten(1, (deltas.shape[1] // 4, 4))
        row = torch.arange(len(deltas), device=deltas.device)
        deltas = deltas[row, objects.classes.clamp(max=deltas.shape[1] - 1)]
        # Augmentation can leave a box without area, which no delta starts from.
        low, high = objects.boxes.chunk(2, dim=1)
        boxes = torch.cat([low, torch.maximum(high, low + 1)], dim=1)
        box = box_regression_loss(
            predictor.box2box_transform,
            boxes,
            deltas,
            boxes,
            predictor.box_reg_loss_type,
            predictor.smooth_l1_beta,
        )
        weight = predictor.loss_weight
        return cls * weight.get("loss_cls", 1.0) + box * weight.get("loss_box_reg", 1.0)


def sampling_frequency(matched_idxs, batch_size: int, positive_fraction: float):
    """The probability that Detectron2's `subsample_labels` draws each anchor.

    Args:
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
        batch_size: anchors drawn in an image.
        positive_fraction: at most this share of them positive.

    Returns:
        (N, R); weighting by it gives the expected value of the sampled loss.
    """
    positive, negative = matched_idxs >= 0, matched_idxs == BACKGROUND
    num_positive = positive.sum(1, keepdim=True)
    num_negative = negative.sum(1, keepdim=True)
    take_positive = num_positive.clamp(max=int(batch_size * positive_fraction))
    take_negative = torch.minimum(num_negative, batch_size - take_positive)
    of_positive = take_positive / num_positive.clamp(min=1)
    of_negative = take_negative / num_negative.clamp(min=1)
    return positive * of_positive + negative * of_negative


def hardest_background(cls, matched_idxs, levels, count: int):
    """Mean loss of the `count` hardest negatives of each image and level.

    Args:
        cls: (N, R) loss of each anchor.
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
        levels: L levels.
        count: the divisor; a level with fewer anchors gives them all.

    Returns:
        (N, L)
    """
    per_level = [x.flatten(1) for x in split_levels(cls * (matched_idxs == BACKGROUND), levels)]
    return torch.stack(
        [x.topk(min(count, x.shape[1])).values.sum(1) / count for x in per_level], dim=1
    )
