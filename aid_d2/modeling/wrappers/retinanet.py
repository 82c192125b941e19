"""RetinaNet (Lin et al., ICCV 2017)."""

from detectron2.modeling.meta_arch.retinanet import RetinaNet

from ...layers.matching import gather_matched, match_by_iou
from .base import WRAPPER_REGISTRY
from .dense import DenseWrapper, box_regression_loss, focal_losses


@WRAPPER_REGISTRY.register()
class RetinaNetWrapper(DenseWrapper):
    """Focal loss and box loss of every anchor, by the detector's own assignment."""

    detector = RetinaNet
    ignoring_parts = {"MODEL.META_ARCHITECTURE": {"RetinaNet": "IgnoringRetinaNet"}}

    def predict(self, towers):
        return (
            [self.head.cls_score(x) for x in towers["cls"]],
            [self.head.bbox_pred(x) for x in towers["box"]],
        )

    def matched_idxs(self, predictions, objects):
        return match_by_iou(self.model.anchor_matcher, predictions.anchors, objects)

    @property
    def loss_constants(self):
        model = self.model
        return {
            "focal loss (alpha, gamma)": (model.focal_loss_alpha, model.focal_loss_gamma),
            "box loss (type, beta)": (model.box_reg_loss_type, model.smooth_l1_beta),
            "matching": vars(model.anchor_matcher),
        }

    def unreduced_losses(self, features, head_outputs, objects):
        model = self.model
        predictions = self.predictions(features, head_outputs)
        matched_idxs = self.matched_idxs(predictions, objects)
        box = box_regression_loss(
            model.box2box_transform,
            predictions.anchors,
            predictions.regression,
            gather_matched(objects.boxes, matched_idxs, predictions.anchors),
            model.box_reg_loss_type,
            model.smooth_l1_beta,
        )
        return focal_losses(model, predictions, matched_idxs, objects, box)
