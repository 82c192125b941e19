"""Faster R-CNN (Ren et al., NeurIPS 2015) on a feature pyramid."""

import torch
import torch.nn.functional as F

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rrpn import RRPN
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes

from ...layers.matching import gather_matched, inside_images, label_proposals, match_by_iou
from ...structures import BACKGROUND, IGNORED, UnreducedLosses, split_levels
from .base import WRAPPER_REGISTRY, DetectorWrapper
from .dense import box_regression_loss, dense_predictions

# Of an image, to judge box heads by; Detectron2 trains on 512 by default.
_PROPOSALS = 128


@WRAPPER_REGISTRY.register()
class FasterRCNNWrapper(DetectorWrapper):
    """RPN losses of every anchor, and the box head's loss on the ground-truth boxes themselves.

    Nothing is sampled: where the RPN's own loss samples anchors, each counts with the probability
    of being drawn. The box head sees one RoI per object and no proposals, so that a missed or
    misclassified object always has a large loss.

    With `Objects.proposals` the box head's loss is its own on these instead, false alarms included:
    what a detector as a whole is judged by.

    The loss of a Cascade R-CNN (Cai and Vasconcelos, CVPR 2018) on an object is the mean over its
    stages. The first stage sees the ground-truth box, each later one the box as the stage before
    refined it, clipped to the padded image and without gradient; every stage is asked for the
    object itself, however far its box has gone.

    Where the ground truth has masks, a Mask R-CNN's loss on an object includes that of its mask in
    the ground-truth box.
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

    @classmethod
    def serves(cls, model):
        # Not Fast R-CNN, which has no RPN, nor rotated boxes, nor what other projects propose with.
        proposer = model.proposal_generator
        return isinstance(proposer, RPN) and not isinstance(proposer, RRPN)

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

    def matched_idxs(self, predictions, objects):
        rpn, anchors = self.model.proposal_generator, predictions.anchors
        matched_idxs = match_by_iou(rpn.anchor_matcher, anchors, objects)
        if rpn.anchor_boundary_thresh < 0:
            return matched_idxs
        inside = inside_images(anchors, objects.image_sizes, rpn.anchor_boundary_thresh)
        return torch.where(inside, matched_idxs, IGNORED)

    def score(self, features, boxes):
        heads = self.model.roi_heads
        return self._run_stage(features, boxes, heads.box_head, heads.box_predictor)

    def _run_stage(self, features, boxes, box_head, predictor):
        """Logits and deltas of one box head on (R, 4) boxes of each image."""
        heads = self.model.roi_heads
        logits, deltas = self._run_head(
            features,
            boxes,
            heads.box_in_features,
            heads.box_pooler,
            lambda pooled: predictor(box_head(pooled)),
        )
        return logits.float(), deltas.float()

    def _run_head(self, features, boxes, in_features, pooler, head):
        """`head` on what `pooler` makes of (R, 4) boxes of each image, in the maps' precision."""
        by_name = {x.name: features[x.stride] for x in self.levels if x.stride in features}
        maps = [by_name[name] for name in in_features]
        # RoIAlign has no bfloat16 on a CPU.
        pooled = pooler([x.float() for x in maps], [Boxes(x) for x in boxes])
        dtype = maps[0].dtype
        half = dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(pooled.device.type, dtype, enabled=half):
            return head(pooled)

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
        if uses_sigmoid(heads.box_predictor):
            return "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False, for scores by softmax"
        return None

    @property
    def box_stages(self):
        """Pairs of box head and predictor, in order: one, or those of a cascade."""
        heads = self.model.roi_heads
        if isinstance(heads, CascadeROIHeads):
            return list(zip(heads.box_head, heads.box_predictor))
        return [(heads.box_head, heads.box_predictor)]

    @property
    def loss_constants(self):
        predictors = [predictor for _, predictor in self.box_stages]
        parts = self.model.proposal_generator, *predictors
        names = ("loss_weight", "box_reg_loss_type", "smooth_l1_beta")
        constants = {name: [getattr(part, name) for part in parts] for name in names}
        constants["use_sigmoid_ce"] = [uses_sigmoid(x) for x in predictors]
        constants["box transforms of the box heads"] = [
            vars(x.box2box_transform) for x in predictors
        ]
        rpn = self.model.proposal_generator
        constants["matching of the RPN"] = vars(rpn.anchor_matcher)
        for name in ("batch_size_per_image", "positive_fraction", "anchor_boundary_thresh"):
            constants[f"{name} of the RPN"] = getattr(rpn, name)
        return constants

    @property
    def proposal_modules(self):
        heads = self.model.roi_heads
        return [heads.box_pooler] if isinstance(heads, StandardROIHeads) else []

    def proposals(self, outputs, objects):
        heads = self.model.roi_heads
        calls = [call for x in self.proposal_modules for call in outputs.calls.get(x, ())]
        if not calls:
            return None
        # Of a cascade the call of each stage, with boxes and matcher of its own.
        matchers = getattr(heads, "proposal_matchers", [heads.proposal_matcher])
        return [
            label_proposals(
                [thin_out(x, _PROPOSALS) for x in call.inputs[1]],
                objects,
                matcher,
                heads.num_classes,
            )
            for call, matcher in zip(calls, matchers)
        ]

    def check_losses(self):
        heads, in_features = self.model.roi_heads, self.model.proposal_generator.in_features
        lacks = None
        if not isinstance(heads, StandardROIHeads) or not all(
            isinstance(predictor, FastRCNNOutputLayers) for _, predictor in self.box_stages
        ):
            lacks = f"Detectron2's own box heads, not those of {type(heads).__name__}"
        elif not set(heads.box_in_features) <= set(in_features):
            lacks = (
                f"all of MODEL.ROI_HEADS.IN_FEATURES {heads.box_in_features} among "
                f"MODEL.RPN.IN_FEATURES {in_features}"
            )
        if lacks:
            raise NotImplementedError(
                f"AID needs a Faster R-CNN with {lacks}. Set DISTILL.AID.ENABLED False for this "
                "detector."
            )

    def check_masks(self):
        heads, in_features = self.model.roi_heads, self.model.proposal_generator.in_features
        if (
            not getattr(heads, "mask_on", False)
            or not isinstance(heads.mask_head, BaseMaskRCNNHead)
            or not set(heads.mask_in_features) <= set(in_features)
        ):
            super().check_masks()

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
            roi=self._object_losses(features, objects),
            proposals=self._proposal_loss(features, objects),
        )

    def _object_losses(self, features, objects):
        """(M,) loss of the second stage on each object; of its masks alone where its box heads are
        judged on proposals.
        """
        if objects.proposals is None:
            loss = self._box_head_losses(features, objects)
        else:
            loss = objects.boxes.new_zeros(len(objects.boxes))
        return loss if objects.masks is None else loss + self._mask_losses(features, objects)

    def _proposal_loss(self, features, objects):
        """() the box heads' own loss on the labeled images' proposals, the mean over stages."""
        if objects.proposals is None:
            return None
        total = 0.0
        for (box_head, predictor), proposals in zip(self.box_stages, objects.proposals):
            # Of the other images none: the maps are those of all images.
            proposals = [
                x if i in objects.labeled_images else x[:0] for i, x in enumerate(proposals)
            ]
            boxes = [x.proposal_boxes.tensor for x in proposals]
            truth = torch.cat([x.gt_boxes.tensor for x in proposals])
            classes = torch.cat([x.gt_classes for x in proposals])
            logits, deltas = self._run_stage(features, boxes, box_head, predictor)
            deltas = deltas_of(classes, deltas)
            loss = box_head_loss(predictor, logits, deltas, torch.cat(boxes), truth, classes)
            total = total + loss.sum() / max(len(loss), 1)
        return total / len(self.box_stages)

    def _mask_losses(self, features, objects):
        """(M,) loss of the mask head in each ground-truth box: the mean over its pixels."""
        heads = self.model.roi_heads
        boxes = objects.boxes.split(objects.counts)
        logits = self._run_head(
            features, boxes, heads.mask_in_features, heads.mask_pooler, heads.mask_head.layers
        ).float()
        # A class-agnostic head has one mask for all.
        row = torch.arange(len(logits), device=logits.device)
        logits = logits[row, objects.classes.clamp(max=logits.shape[1] - 1)]
        target = [
            masks.to(x.device).crop_and_resize(x, logits.shape[-1]).to(logits)
            for masks, x in zip(objects.masks, boxes)
            if masks is not None
        ]
        target = torch.cat(target) if target else torch.zeros_like(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return loss.mean((1, 2)) * heads.mask_head.loss_weight

    def _box_head_losses(self, features, objects):
        """(M,) loss of the second stage on each object: the mean over its box heads."""
        stride = min(features)
        padded = [side * stride for side in features[stride].shape[-2:]]
        boxes = with_area(objects.boxes)
        stage_losses = []
        for stage, (box_head, predictor) in enumerate(self.box_stages, 1):
            logits, deltas = self._run_stage(
                features, boxes.split(objects.counts), box_head, predictor
            )
            deltas = deltas_of(objects.classes, deltas)
            stage_losses.append(
                box_head_loss(predictor, logits, deltas, boxes, objects.boxes, objects.classes)
            )
            if stage < len(self.box_stages):
                boxes = refine(predictor, deltas, boxes, padded)
        return torch.stack(stage_losses).mean(0)


def thin_out(boxes: Boxes, count: int) -> Boxes:
    """At most `count` of the boxes, at equal distances, which keeps the share of those on objects:
    Detectron2 lists them first.
    """
    return boxes[:: max(-(-len(boxes) // count), 1)]


def uses_sigmoid(predictor) -> bool:
    """Whether a box head scores each class by itself; a key younger than v0.6."""
    return getattr(predictor, "use_sigmoid_ce", False)


def with_area(boxes):
    """(M, 4) boxes of at least 1 px: no delta starts from a box without area."""
    low, high = boxes.chunk(2, dim=1)
    return torch.cat([low, torch.maximum(high, low + 1)], dim=1)


def refine(predictor, deltas, boxes, size):
    """Move (M, 4) boxes by their (M, 4) deltas, without gradient, clipped to (height, width)."""
    refined = Boxes(predictor.box2box_transform.apply_deltas(deltas.detach(), boxes))
    refined.clip(size)
    return with_area(refined.tensor)


def deltas_of(classes, deltas):
    """(P, 4) deltas of each one's class of (P, 4 or 4K); for background, of any."""
    deltas = deltas.unflatten(1, (deltas.shape[1] // 4, 4))
    row = torch.arange(len(deltas), device=deltas.device)
    # With a class-agnostic regressor every class has index 0.
    return deltas[row, classes.clamp(max=deltas.shape[1] - 1)]


def box_head_loss(predictor, logits, deltas, boxes, truth, classes):
    """Weighted cross-entropy + box loss of one box head on each box.

    Of a head with scores by sigmoid it is the sum of the binary ones of all classes.

    Args:
        predictor: of the box head.
        logits: (P, K+1).
        deltas: (P, 4), of each one's class.
        boxes: (P, 4) that the head looked at.
        truth: (P, 4) the objects that they are to become; of background anything.
        classes: (P,) int64, K for background.

    Returns:
        (P,)
    """
    background = logits.shape[1] - 1
    if uses_sigmoid(predictor):
        target = F.one_hot(classes, logits.shape[1])[:, :-1].to(logits)
        cls = F.binary_cross_entropy_with_logits(logits[:, :-1], target, reduction="none").sum(1)
    else:
        cls = F.cross_entropy(logits, classes, reduction="none")
    box = box_regression_loss(
        predictor.box2box_transform,
        boxes,
        deltas,
        with_area(truth),
        predictor.box_reg_loss_type,
        predictor.smooth_l1_beta,
    )
    box = torch.where(classes < background, box, 0.0)
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
