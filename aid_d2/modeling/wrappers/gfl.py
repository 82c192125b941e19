"""GFL (Li et al., NeurIPS 2020)."""

import torch
from torch import Tensor

from ...layers.matching import assign, gather_matched
from ...layers.prediction_losses import distribution_divergence
from ...structures import IGNORED, UnreducedLosses
from ..gfl import GFL
from ..gfl.atss import atss_match
from ..gfl.losses import location_cells, quality_focal_loss
from .base import WRAPPER_REGISTRY
from .dense import DenseWrapper, background_loss, one_hot


@WRAPPER_REGISTRY.register()
class GFLWrapper(DenseWrapper):
    """Losses against hard labels for each object, and GFL's own loss for levels and images.

    GFL's own loss is near 0 on an object that the teacher misses: the class is to be as low as the
    box is bad, and the low score takes the weight from the box. An object or location is therefore
    judged by the quality focal loss with quality 1, and by GIoU without weight. For the loss of a
    level or an image, `factor` turns these into the anchor's part of GFL's own loss.
    """

    detector = GFL
    # GFL labels its anchors so itself.
    ignoring_parts = {}
    mimic_box_weight = 4.0
    mimic_by_confidence = True

    @property
    def towers(self):
        return {"cls": self.head.cls_tower, "box": self.head.box_tower}

    def predict(self, towers):
        return self.head.predict(towers["cls"], towers["box"])

    @property
    def box_bins(self):
        return self.model.reg_max + 1

    def box_distance(self, student, teacher):
        return distribution_divergence(student.regression, teacher.regression)

    def matched_idxs(self, predictions, objects):
        anchors, candidates = predictions.anchors, self.model.atss_candidates
        sizes = [x.num_anchors for x in predictions.levels]
        return assign(
            lambda boxes: atss_match(anchors, sizes, boxes, candidates),
            location_cells(anchors),
            objects,
        )

    @property
    def loss_constants(self):
        names = (
            "quality_focal_loss_beta",
            "giou_loss_weight",
            "distribution_focal_loss_weight",
            "atss_candidates",
        )
        return {name: getattr(self.model, name) for name in names}

    def unreduced_losses(self, features, head_outputs, objects):
        model = self.model
        predictions = self.predictions(features, head_outputs)
        matched_idxs = self.matched_idxs(predictions, objects)
        # K for background, -1 for what is ignored.
        no_class = torch.where(matched_idxs == IGNORED, -1, self.num_classes)
        labels = gather_matched(objects.classes, matched_idxs, no_class)
        own = model.anchor_losses(
            predictions.anchors,
            predictions.logits,
            predictions.regression,
            labels,
            gather_matched(objects.boxes, matched_idxs, predictions.anchors),
        )
        positive = own.positive
        hard = quality_focal_loss(
            predictions.logits,
            one_hot(labels, model.num_classes).float(),
            model.quality_focal_loss_beta,
        ).sum(-1)
        cls = hard * (matched_idxs != IGNORED)
        box = torch.zeros_like(cls).masked_scatter(positive, own.giou)

        weighted = own.weight * (
            model.giou_loss_weight * own.giou + model.distribution_focal_loss_weight * own.dfl
        )
        own_box = torch.zeros_like(cls).masked_scatter(positive, weighted)
        weight = torch.zeros_like(cls).masked_scatter(positive, own.weight)
        count, weight = positive.sum(1), weight.sum(1)
        batch_count, batch_weight = own.divisors()
        # GFL's loss of an anchor over the one divisor N_pos: box losses have their own, sum q.
        own_loss = own.qfl + own_box * (batch_count / batch_weight)
        of_image = own.qfl.sum(1) / count.clamp(min=1) + own_box.sum(1) / weight.clamp(min=1)
        return UnreducedLosses(
            levels=predictions.levels,
            cls=cls,
            box=box,
            matched_idxs=matched_idxs,
            factor=_ratio(own_loss, cls + box),
            # Of an image alone sum q differs: the divisor that gives GFL's loss on it.
            image_normalizer=_ratio(own_loss.sum(1), of_image),
            batch_normalizer=batch_count,
            background=background_loss(cls, matched_idxs, predictions.levels),
            objects=objects,
        )


def _ratio(value: Tensor, reference: Tensor) -> Tensor:
    """value / reference; 1 where the reference is 0, and then the value too."""
    # The inner choice keeps the gradient finite there.
    return torch.where(reference > 0, value / torch.where(reference > 0, reference, 1.0), 1.0)
