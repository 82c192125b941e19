"""GFL: *Generalized Focal Loss* (Li et al., NeurIPS 2020).

A dense detector whose class score is the quality of its box, and whose box sides are distributions.
"""

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.structures.boxes import matched_pairwise_iou

from ...config import CONFIG_EXTENSIONS
from ...layers.iou import giou_loss
from ...layers.matching import inside_regions
from ...layers.norms import group_norm
from ...structures import split_ignored
from .atss import atss_match
from .head import GFLHead
from .losses import (
    ANCHOR_SIZE,
    AnchorLosses,
    BoxDistribution,
    distribution_focal_loss,
    location_cells,
    quality_focal_loss,
)

# Targets of the distribution focal loss stay this far below the last bin.
_BELOW_LAST_BIN = 0.1


def add_gfl_config(cfg: CfgNode) -> None:
    """Add the node MODEL.GFL, with the values of the paper."""
    cfg.MODEL.GFL = CfgNode()
    # Number of object classes.
    cfg.MODEL.GFL.NUM_CLASSES = 80
    # Maps of the backbone that the head looks at.
    cfg.MODEL.GFL.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions in each of the two towers.
    cfg.MODEL.GFL.NUM_CONVS = 4
    # Normalization in the towers: GN, or none where empty. Levels share it, which BN does not bear.
    cfg.MODEL.GFL.NORM = "GN"
    # A box side is a distribution over 0, 1, ..., REG_MAX strides.
    cfg.MODEL.GFL.REG_MAX = 16
    # Nearest anchors of an object on each level that ATSS looks at.
    cfg.MODEL.GFL.ATSS_CANDIDATES = 9
    # Score of every class at the start of training.
    cfg.MODEL.GFL.PRIOR_PROB = 0.01
    # Exponent of the quality focal loss.
    cfg.MODEL.GFL.QUALITY_FOCAL_LOSS_BETA = 2.0
    # Factors on GIoU and distribution focal loss; the quality focal loss has 1.
    cfg.MODEL.GFL.GIOU_LOSS_WEIGHT = 2.0
    cfg.MODEL.GFL.DISTRIBUTION_FOCAL_LOSS_WEIGHT = 0.25
    # Inference: least score, boxes kept on each level before NMS, IoU of the class-wise NMS.
    cfg.MODEL.GFL.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.GFL.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.GFL.NMS_THRESH_TEST = 0.6


CONFIG_EXTENSIONS.append(add_gfl_config)


@META_ARCH_REGISTRY.register()
class GFL(DenseDetector):
    """Generalized Focal Loss (Li et al., NeurIPS 2020).

    One square anchor of 8 strides at each location, centered at multiples of the stride, assigned
    by ATSS. With s the class scores, y the IoU of the predicted box with its object and q the
    highest score of an anchor, the last two without gradient:

        L = sum QFL(s, y) / N_pos + sum_pos q (2 GIoU + 0.25 DFL) / sum_pos q

    Both divisors are means over GPUs, at least 1.

    Args:
        backbone: with maps of equal channels.
        head: as :class:`GFLHead`.
        head_in_features: maps that the head looks at; all of them by default.
        num_classes: K.
        reg_max: n of the box distributions over 0, 1, ..., n.
        atss_candidates: candidates of an object on each level.
        quality_focal_loss_beta: exponent of QFL.
        giou_loss_weight: factor on GIoU.
        distribution_focal_loss_weight: factor on DFL.
        test_score_thresh: detections have a higher score.
        test_topk_candidates: detections kept on each level before NMS.
        test_nms_thresh: IoU of the class-wise NMS.
        max_detections_per_image: detections kept after NMS.
        pixel_mean, pixel_std: per channel, see :class:`DenseDetector`.
    """

    inference_single_image = RetinaNet.inference_single_image

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str] | None = None,
        num_classes: int,
        reg_max: int = 16,
        atss_candidates: int = 9,
        quality_focal_loss_beta: float = 2.0,
        giou_loss_weight: float = 2.0,
        distribution_focal_loss_weight: float = 0.25,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.num_classes = num_classes
        self.reg_max = reg_max
        shapes = backbone.output_shape()
        strides = [shapes[name].stride for name in self.head_in_features]
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[ANCHOR_SIZE * stride] for stride in strides],
            aspect_ratios=[[1.0]],
            strides=strides,
            offset=0.0,
        )
        self.box2box_transform = BoxDistribution(reg_max)
        self.atss_candidates = atss_candidates
        self.quality_focal_loss_beta = quality_focal_loss_beta
        self.giou_loss_weight = giou_loss_weight
        self.distribution_focal_loss_weight = distribution_focal_loss_weight
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode):
        node = cfg.MODEL.GFL
        if node.NORM not in ("GN", ""):
            raise ValueError(
                f"MODEL.GFL.NORM is {node.NORM!r}; it has to be 'GN', or '' for none. Levels share "
                "it, which others do not bear."
            )
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        head = GFLHead(
            input_shape=[shapes[name] for name in node.IN_FEATURES],
            num_classes=node.NUM_CLASSES,
            num_convs=node.NUM_CONVS,
            reg_max=node.REG_MAX,
            norm=group_norm if node.NORM == "GN" else node.NORM,
            prior_prob=node.PRIOR_PROB,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "num_classes": node.NUM_CLASSES,
            "reg_max": node.REG_MAX,
            "atss_candidates": node.ATSS_CANDIDATES,
            "quality_focal_loss_beta": node.QUALITY_FOCAL_LOSS_BETA,
            "giou_loss_weight": node.GIOU_LOSS_WEIGHT,
            "distribution_focal_loss_weight": node.DISTRIBUTION_FOCAL_LOSS_WEIGHT,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        logits, distributions = self._flatten(predictions)
        anchors = self.anchor_generator(features)
        labels, boxes = self.label_anchors(anchors, gt_instances)
        losses = self.anchor_losses(
            Boxes.cat(anchors).tensor,
            torch.cat(logits, dim=1),
            torch.cat(distributions, dim=1),
            torch.stack(labels),
            torch.stack(boxes),
        )
        num_positive, sum_weight = losses.divisors()
        giou, dfl = ((losses.weight * x).sum() / sum_weight for x in (losses.giou, losses.dfl))
        return {
            "loss_cls": losses.qfl.sum() / num_positive,
            "loss_box_reg": self.giou_loss_weight * giou,
            "loss_dfl": self.distribution_focal_loss_weight * dfl,
        }

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Assign anchors to objects by ATSS; the interface of :meth:`RetinaNet.label_anchors`.

        Args:
            anchors: per level, R in all.
            gt_instances: objects of each image; those of class -1 are ignore regions.

        Returns:
            per image the class (R,) of each anchor, K for background, -1 for background in an
            ignore region, and the box (R, 4) of its object, zeros for background.
        """
        sizes, every_anchor = [len(x) for x in anchors], Boxes.cat(anchors).tensor
        labels, matched = [], []
        for objects, regions in map(split_ignored, gt_instances):
            classes, boxes = objects.gt_classes, objects.gt_boxes.tensor
            index = atss_match(every_anchor, sizes, boxes, self.atss_candidates)
            # The index of background is -1, which is the row added at the end.
            label = torch.cat([classes, classes.new_full((1,), self.num_classes)])[index]
            if len(regions):
                label[(index < 0) & inside_regions(location_cells(every_anchor), regions)] = -1
            labels.append(label)
            matched.append(torch.cat([boxes, boxes.new_zeros(1, 4)])[index])
        return labels, matched

    def anchor_losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        distributions: Tensor,
        labels: Tensor,
        boxes: Tensor,
    ) -> AnchorLosses:
        """The losses of every anchor.

        Args:
            anchors: (R, 4).
            logits: (N, R, K) of the classes.
            distributions: (N, R, 4(n+1)) logits of the distances.
            labels: (N, R) class; K for background, -1 for ignored.
            boxes: (N, R, 4) object of each positive anchor.
        """
        positive = (labels >= 0) & (labels < self.num_classes)
        # Indices instead of the mask: where they are is looked up, and waited for, only once.
        at = positive.nonzero(as_tuple=True)
        anchors, targets, distributions = anchors[at[1]], boxes[at], distributions[at]
        predicted = self.box2box_transform.apply_deltas(distributions, anchors)

        quality = torch.zeros_like(logits)
        quality[(*at, labels[at])] = matched_pairwise_iou(Boxes(predicted.detach()), Boxes(targets))
        qfl = quality_focal_loss(logits, quality, self.quality_focal_loss_beta).sum(-1)
        distances = self.box2box_transform.get_deltas(anchors, targets)
        dfl = distribution_focal_loss(
            distributions.unflatten(-1, (4, self.reg_max + 1)),
            distances.clamp(0, self.reg_max - _BELOW_LAST_BIN),
        )
        return AnchorLosses(
            positive=positive,
            qfl=qfl * (labels >= 0),
            giou=giou_loss(predicted, targets),
            dfl=dfl.mean(-1),
            weight=logits[at].detach().sigmoid().amax(-1),
        )

    def forward_inference(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor]],
    ) -> list[Instances]:
        logits, distributions = self._flatten(predictions)
        anchors = self.anchor_generator(features)
        results = []
        for index, image_size in enumerate(images.image_sizes):
            scores = [x[index].sigmoid() for x in logits]
            distances = [x[index] for x in distributions]
            results.append(self.inference_single_image(anchors, scores, distances, image_size))
        return results

    def _flatten(self, predictions) -> list[list[Tensor]]:
        return self._transpose_dense_predictions(
            predictions, [self.num_classes, 4 * (self.reg_max + 1)]
        )
