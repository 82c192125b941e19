"""FCOS (Tian et al., ICCV 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances

from ...layers.matching import assign, gather_matched
from ...layers.prediction_losses import iou_loss
from .base import WRAPPER_REGISTRY
from .dense import DenseWrapper, box_regression_loss, focal_losses


@WRAPPER_REGISTRY.register()
class FCOSWrapper(DenseWrapper):
    """Focal loss of every location; GIoU and centerness of the positive ones as the box loss.

    Centerness counts as box loss because it judges where the location lies in the object's box,
    whatever its class.
    """

    detector = FCOS
    mimic_cls_weight = 0.4
    mimic_box_weight = 0.75

    def predict(self, towers):
        maps = (
            [self.head.cls_score(x) for x in towers["cls"]],
            [self.head.bbox_pred(x) for x in towers["box"]],
            [self.head.ctrness(x) for x in towers["box"]],
        )
        return [[x.float() for x in level] for level in maps]

    def matched_idxs(self, predictions, objects):
        anchors, sizes = predictions.anchors, [x.num_anchors for x in predictions.levels]
        per_level = [Boxes(x) for x in anchors.split(sizes)]
        return assign(lambda boxes: self._match(per_level, boxes), anchors, objects)

    def box_distance(self, student, teacher):
        return iou_loss(student.boxes, teacher.boxes)

    @property
    def loss_constants(self):
        model = self.model
        return {
            "focal loss (alpha, gamma)": (model.focal_loss_alpha, model.focal_loss_gamma),
            "center_sampling_radius": model.center_sampling_radius,
        }

    def unreduced_losses(self, features, head_outputs, objects):
        model = self.model
        predictions = self.predictions(features, head_outputs)
        anchors, matched_idxs = predictions.anchors, self.matched_idxs(predictions, objects)
        targets = gather_matched(objects.boxes, matched_idxs, anchors)
        giou = box_regression_loss(
            model.box2box_transform,
            anchors,
            predictions.regression,
            targets,
            kind="giou",
            beta=0.0,
        )
        centerness = F.binary_cross_entropy_with_logits(
            predictions.centerness,
            self._centerness(anchors, targets),
            reduction="none",
        )
        return focal_losses(model, predictions, matched_idxs, objects, giou + centerness)

    def _match(self, anchors, boxes: Tensor) -> Tensor:
        """(R,) index into boxes (m, 4), or -1, by the detector's own assignment.

        Detectron2 versions share only its labels: classes above K stand for the objects.
        """
        first = self.model.num_classes + 1
        if len(boxes) == 0:
            return torch.full((sum(map(len, anchors)),), -1, device=boxes.device)
        index = torch.arange(first, first + len(boxes), device=boxes.device)
        instances = Instances((0, 0), gt_boxes=Boxes(boxes), gt_classes=index)
        labels, _ = self.model.label_anchors(anchors, [instances])
        return torch.where(labels[0] >= first, labels[0] - first, -1)

    def _centerness(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """``sqrt(min(l,r)/max(l,r) min(t,b)/max(t,b))`` of locations in boxes (FCOS eq. 3)."""
        sides = self.model.box2box_transform.get_deltas(
            anchors.expand_as(boxes).reshape(-1, 4), boxes.reshape(-1, 4)
        )
        left_top, right_bottom = sides.view_as(boxes).chunk(2, dim=-1)
        ratio = torch.minimum(left_top, right_bottom) / torch.maximum(left_top, right_bottom)
        return ratio.prod(-1).sqrt()
