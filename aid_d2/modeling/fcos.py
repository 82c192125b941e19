"""FCOS (Tian et al., ICCV 2019) of Detectron2, made available to yaml configs."""

import torch
from torch import Tensor

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch import fcos
from detectron2.structures import Boxes, Instances

from ..config import CONFIG_EXTENSIONS
from ..layers.norms import group_norm


def add_fcos_config(cfg: CfgNode) -> None:
    """Add the node MODEL.FCOS, with the values of Detectron2's own FCOS."""
    cfg.MODEL.FCOS = CfgNode()
    # Number of object classes.
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    # Maps of the backbone that the head looks at.
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions in each of the two towers.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    # Normalization in the towers: GN as published; BN and SyncBN are separate for each level; none
    # where empty.
    cfg.MODEL.FCOS.NORM = "GN"
    # Score of every class at the start of training.
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Locations this near to the center of an object, in strides, are positive for it.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # Focal loss.
    cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # Inference: least score, which is the root of class score x centerness; boxes kept on each
    # level before NMS; IoU of the class-wise NMS.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.2
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6


CONFIG_EXTENSIONS.append(add_fcos_config)


class FCOSHead(fcos.FCOSHead):
    """Detectron2's head with float32 predictions also under autocast.

    Its GIoU loss fails on half precision, and boxes decoded in it are off by pixels.
    """

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        return [[x.float() for x in maps] for maps in super().forward(features)]


@META_ARCH_REGISTRY.register()
class FCOS(fcos.FCOS):
    """Detectron2's FCOS, built from a config and safe on images without objects.

    The towers have GroupNorm as published. Detectron2 v0.6 cannot build its head with the name
    "GN", since it first tries the norm on one channel; it gets :func:`group_norm` instead, which
    fits every width.
    """

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode):
        node = cfg.MODEL.FCOS
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in node.IN_FEATURES]
        head = FCOSHead(
            input_shape=shapes,
            num_classes=node.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * node.NUM_CONVS,
            norm=group_norm if node.NORM == "GN" else node.NORM,
            prior_prob=node.PRIOR_PROB,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "num_classes": node.NUM_CLASSES,
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list]:
        # v0.6 fails on an image without objects. No location lies inside an empty box.
        return super().label_anchors(anchors, [x if len(x) else _nowhere(x) for x in gt_instances])


def _nowhere(instances: Instances) -> Instances:
    device = instances.gt_boxes.device
    return Instances(
        instances.image_size,
        gt_boxes=Boxes(torch.zeros(1, 4, device=device)),
        gt_classes=torch.zeros(1, dtype=torch.int64, device=device),
    )
