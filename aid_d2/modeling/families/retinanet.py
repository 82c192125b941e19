"""RetinaNet (Lin et al., ICCV 2017)."""

import torch
from fvcore.nn import sigmoid_focal_loss

from detectron2.modeling.meta_arch.retinanet import RetinaNet

from ...aid import IGNORED, TeacherLosses
from .base import FAMILY_REGISTRY, DenseFamily
from .dense import background_loss, box_regression_loss, match_by_iou, one_hot, owned


@FAMILY_REGISTRY.register()
class RetinaNetFamily(DenseFamily):
    """Focal loss and box loss of every anchor, by the detector's own assignment."""

    detector = RetinaNet

    def predict(self, towers):
        return (
            [self.head.cls_score(x) for x in towers["cls"]],
            [self.head.bbox_pred(x) for x in towers["box"]],
        )

    def owners(self, dense, objects):
        return match_by_iou(self.model.anchor_matcher, dense.anchors, objects)

    def teacher_losses(self, features, predictions, objects):
        model = self.model
        dense = self.dense(features, predictions)
        owner = self.owners(dense, objects)
        positive = owner >= 0

        labels = owned(objects.classes, owner, owner)
        cls = sigmoid_focal_loss(
            dense.logits,
            one_hot(labels, model.num_classes).float(),
            alpha=model.focal_loss_alpha,
            gamma=model.focal_loss_gamma,
        ).sum(-1) * (owner != IGNORED)
        box = positive * box_regression_loss(
            model.box2box_transform,
            dense.anchors,
            dense.regression,
            owned(objects.boxes, owner, dense.anchors),
            model.box_reg_loss_type,
            model.smooth_l1_beta,
        )
        return TeacherLosses(
            levels=dense.levels,
            cls=cls,
            box=box,
            owner=owner,
            frequency=torch.ones_like(cls),
            # The detector divides by a running mean of the positives, which no checkpoint keeps.
            image_normalizer=positive.sum(1).clamp(min=1),
            batch_normalizer=positive.sum().clamp(min=1),
            background=background_loss(cls, owner, dense.levels),
            objects=objects,
        )
