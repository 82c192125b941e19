"""Parts of detectors that leave ignore regions out of the training loss.

`IgnoreRegionMapper` hands the regions on as ground truth of class -1. The registered subclasses
here label anchors and proposals by the real objects only; what lies in a region is no negative
example.
"""

from collections.abc import Callable
from operator import attrgetter

from torch import Tensor

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou

from ..config import DISTILLED
from ..layers.matching import inside_regions
from ..structures import split_ignored
from .wrappers import wrapper_class


@META_ARCH_REGISTRY.register()
class IgnoringRetinaNet(RetinaNet):
    def label_anchors(self, anchors, gt_instances):
        label = super().label_anchors
        return label_outside_regions(label, anchors, gt_instances, background=self.num_classes)


@PROPOSAL_GENERATOR_REGISTRY.register()
class IgnoringRPN(RPN):
    def label_and_sample_anchors(self, anchors, gt_instances):
        label = super().label_and_sample_anchors
        return label_outside_regions(label, anchors, gt_instances, background=0)


@ROI_HEADS_REGISTRY.register()
class IgnoringROIHeads(StandardROIHeads):
    def label_and_sample_proposals(self, proposals, targets):
        kept = outside_regions(proposals, targets, self.proposal_matcher)
        return super().label_and_sample_proposals(*kept)


@ROI_HEADS_REGISTRY.register()
class IgnoringCascadeROIHeads(IgnoringROIHeads, CascadeROIHeads):
    def _match_and_label_boxes(self, proposals, stage, targets):
        # A cascade labels the boxes of later stages by itself.
        proposals, targets = outside_regions(proposals, targets, self.proposal_matchers[stage])
        return super()._match_and_label_boxes(proposals, stage, targets)


def label_outside_regions(
    label: Callable, anchors: list[Boxes], gt_instances: list[Instances], background: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Label anchors by the real objects, and with -1 where background lies in an ignore region.

    Args:
        label: the detector's own method.
        anchors: per level.
        gt_instances: objects and ignore regions of each image.
        background: the label of background.

    Returns:
        as the method does.
    """
    objects, regions = zip(*map(split_ignored, gt_instances))
    labels, matched = label(anchors, list(objects))
    boxes = Boxes.cat(anchors).tensor
    for per_image, ignored in zip(labels, regions):
        per_image[(per_image == background) & inside_regions(boxes, ignored)] = -1
    return labels, matched


def outside_regions(
    proposals: list[Instances], targets: list[Instances], matcher: Matcher
) -> tuple[list[Instances], list[Instances]]:
    """Proposals that lie on an object, as a matcher sees it, or outside all ignore regions; and the
    real objects.
    """
    least_iou = matcher.thresholds[-2]  # of its last label; infinity comes after
    objects, regions = zip(*map(split_ignored, targets))
    kept = []
    for per_image, real, ignored in zip(proposals, objects, regions):
        boxes = per_image.proposal_boxes
        on_object = (pairwise_iou(real.gt_boxes, boxes) >= least_iou).any(0)
        kept.append(per_image[on_object | ~inside_regions(boxes.tensor, ignored)])
    return kept, list(objects)


def ignoring_regions(cfg: CfgNode) -> CfgNode:
    """The config of a detector, or of a distilled one's student, with the parts registered here.

    Raises:
        ValueError: the detector labels its anchors in another way.
    """
    cfg = cfg.clone()
    cfg.defrost()
    distilled = cfg.MODEL.META_ARCHITECTURE == DISTILLED
    name = cfg.DISTILL.STUDENT if distilled else cfg.MODEL.META_ARCHITECTURE
    parts = wrapper_class(META_ARCH_REGISTRY.get(name)).ignoring_parts
    if parts is None:
        raise ValueError(f"INPUT.MASK_IGNORE_REGIONS does not work with {name}: set it False.")
    for key, replacements in parts.items():
        if distilled and key == "MODEL.META_ARCHITECTURE":
            key = "DISTILL.STUDENT"
        value = attrgetter(key)(cfg)
        if value not in replacements:
            raise ValueError(
                f"INPUT.MASK_IGNORE_REGIONS does not work with {key} {value}, only with "
                f"{' or '.join(replacements)}: set it False."
            )
        cfg.merge_from_list([key, replacements[value]])
    return cfg
