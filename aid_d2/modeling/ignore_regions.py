"""Leaving ignore regions out of a detector's training loss.

`IgnoreRegionMapper` hands them on as ground truth of class -1. Here methods with which Detectron2
labels anchors and proposals are wrapped on one detector: they get the real objects only, and what
lies in an ignore region is no negative example.
"""

from collections.abc import Callable

from torch import Tensor, nn

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou

from .gfl import GFL
from .gfl_losses import location_cells


def inside_regions(boxes: Tensor, regions: Tensor) -> Tensor:
    """Which boxes have more than half of their area in one region.

    Args:
        boxes: (B, 4) x1 y1 x2 y2.
        regions: (I, 4).

    Returns:
        (B,) bool
    """
    return (pairwise_ioa(Boxes(regions), Boxes(boxes)) > 0.5).any(0)


def mask_ignore_regions(model: nn.Module) -> None:
    """Make a detector leave ignore regions out of its loss, in place.

    Args:
        model: a RetinaNet, a GFL, a GeneralizedRCNN, or a DistilledDetector around one.

    Raises:
        ValueError: a detector that labels its anchors in another way.
    """
    model = getattr(model, "student", model)
    if isinstance(model, GeneralizedRCNN):
        rpn, heads = model.proposal_generator, model.roi_heads
        rpn.label_and_sample_anchors = _anchors_masked(rpn.label_and_sample_anchors, background=0)
        heads.label_and_sample_proposals = _proposals_masked(heads.label_and_sample_proposals)
        if isinstance(heads, CascadeROIHeads):  # which labels the boxes of later stages by itself
            heads._match_and_label_boxes = _proposals_masked(heads._match_and_label_boxes)
    elif isinstance(model, RetinaNet):
        model.label_anchors = _anchors_masked(model.label_anchors, background=model.num_classes)
    elif isinstance(model, GFL):
        model.label_anchors = _anchors_masked(
            model.label_anchors, background=model.num_classes, extent=location_cells
        )
    else:
        raise ValueError(
            f"INPUT.MASK_IGNORE_REGIONS does not work with {type(model).__name__}: set it False."
        )


def _split(instances: Instances) -> tuple[Instances, Tensor]:
    """Real objects, and the boxes (I, 4) of the ignore regions."""
    ignored = instances.gt_classes < 0
    return instances[~ignored], instances.gt_boxes.tensor[ignored]


def _anchors_masked(
    label: Callable, background: int, extent: Callable[[Tensor], Tensor] = lambda anchors: anchors
) -> Callable:
    def label_masked(anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list, list]:
        objects, regions = zip(*map(_split, gt_instances))
        labels, matched = label(anchors, list(objects))
        every_anchor = extent(Boxes.cat(anchors).tensor)
        for per_image, ignored in zip(labels, regions):
            per_image[(per_image == background) & inside_regions(every_anchor, ignored)] = -1
        return labels, matched

    return label_masked


def _proposals_masked(label: Callable) -> Callable:
    def label_masked(proposals: list[Instances], *stage_and_targets) -> list[Instances]:
        *stage, targets = stage_and_targets
        objects, regions = zip(*map(_split, targets))
        kept = []
        for per_image, real, ignored in zip(proposals, objects, regions):
            boxes = per_image.proposal_boxes
            on_object = (pairwise_iou(real.gt_boxes, boxes) >= 0.5).any(0)
            kept.append(per_image[on_object | ~inside_regions(boxes.tensor, ignored)])
        return label(kept, *stage, list(objects))

    return label_masked
