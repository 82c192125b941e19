"""RetinaNet (Lin et al., ICCV 2017)."""

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss

from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes

from ...aid import IGNORED, TeacherLosses
from .base import FAMILY_REGISTRY, DenseFamily
from .dense import (
    background_loss,
    box_regression_loss,
    flatten_levels,
    level_shapes,
    match_by_iou,
    owned,
)


@FAMILY_REGISTRY.register()
class RetinaNetFamily(DenseFamily):
    """Focal loss and box loss of every anchor, by the detector's own assignment."""

    detector = RetinaNet

    def teacher_losses(self, features, predictions, objects):
        model = self.model
        logit_maps, delta_maps = predictions
        levels = level_shapes(delta_maps, list(features), values=4)
        anchors = Boxes.cat(model.anchor_generator(list(features.values()))).tensor
        owner = match_by_iou(model.anchor_matcher, anchors, objects)
        positive = owner >= 0

        labels = owned(objects.classes, owner, torch.zeros_like(owner))
        target = F.one_hot(labels, model.num_classes) * positive[..., None]
        cls = sigmoid_focal_loss(
            flatten_levels(logit_maps, model.num_classes),
            target.float(),
            alpha=model.focal_loss_alpha,
            gamma=model.focal_loss_gamma,
        ).sum(-1) * (owner != IGNORED)
        box = positive * box_regression_loss(
            model.box2box_transform,
            anchors,
            flatten_levels(delta_maps, 4),
            owned(objects.boxes, owner, anchors),
            model.box_reg_loss_type,
            model.smooth_l1_beta,
        )
        return TeacherLosses(
            levels=levels,
            cls=cls,
            box=box,
            owner=owner,
            frequency=torch.ones_like(cls),
            # The detector divides by a running mean of the positives, which no checkpoint keeps.
            image_normalizer=positive.sum(1).clamp(min=1),
            batch_normalizer=positive.sum().clamp(min=1),
            background=background_loss(cls, owner, levels),
            objects=objects,
        )
