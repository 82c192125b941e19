"""RetinaNet (Lin et al., ICCV 2017)."""

from functools import cached_property

from detectron2.modeling.meta_arch.retinanet import RetinaNet

from .assignment import gather_matched, iou_rule, is_known, match_by_iou
from .base import WRAPPER_REGISTRY, DenseWrapper
from .dense import box_regression_loss, focal_losses

# As it is defined, whatever is put in its place later.
_LABEL = RetinaNet.label_anchors


@WRAPPER_REGISTRY.register()
class RetinaNetWrapper(DenseWrapper):
    """Focal loss and box loss of every anchor, by the detector's own assignment."""

    detector = RetinaNet

    def predict(self, towers):
        return (
            [self.head.cls_score(x) for x in towers["cls"]],
            [self.head.bbox_pred(x) for x in towers["box"]],
        )

    @cached_property
    def assignment(self):
        return iou_rule(self.anchor_generator, self.model.anchor_matcher)

    def assign(self, levels, anchors, objects):
        return match_by_iou(self.model.anchor_matcher, anchors, objects)

    @property
    def labeller(self):
        if not is_known(self.anchor_generator, self.model.anchor_matcher):
            return None
        return self.model, _LABEL

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
