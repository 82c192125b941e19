"""The ground truth of a batch."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from detectron2.structures import BitMasks, Instances, PolygonMasks

# Key of a data set dict, kept by Detectron2's mapper, of an image that the teacher labeled.
PSEUDO_LABELED = "pseudo_labeled"


@dataclass
class Objects:
    """The M ground-truth objects of a batch, images one after the other.

    Attributes:
        boxes: (M, 4) x1 y1 x2 y2, pixels of the network's input.
        classes: (M,) int64.
        counts: number of objects in each of the N images.
        ignored: per image the boxes (I, 4) of its ignore regions, where nothing is known.
        image_sizes: (height, width) of each image, without padding.
        pseudo_labeled: indices of the images that the teacher labeled itself.
        masks: of each image with objects its BitMasks or PolygonMasks, else None; None where masks
            play no part.
        proposals: per box head the proposals of each image, as :func:`label_proposals` gives them,
            where a second stage is judged on them; else None.
    """

    boxes: Tensor
    classes: Tensor
    counts: list[int]
    ignored: list[Tensor]
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    pseudo_labeled: list[int] = field(default_factory=list)
    masks: list[BitMasks | PolygonMasks | None] | None = None
    proposals: list[list[Instances]] | None = None

    @classmethod
    def from_inputs(
        cls, batched_inputs: list[dict], device: torch.device, with_masks: bool = False
    ) -> "Objects":
        """From Detectron2's training inputs; instances of class -1 are ignore regions.

        Raises:
            ValueError: an image has no `instances`, or none with masks where they are asked for.
        """
        if not all("instances" in x for x in batched_inputs):
            raise ValueError(
                "An image of the batch has no 'instances': in training mode a DistilledDetector "
                "needs ground truth, as Detectron2's DatasetMapper(is_train=True) gives it."
            )
        instances = [x["instances"] for x in batched_inputs]
        real, ignored = zip(*map(split_ignored, instances))
        if with_masks and not all(x.has("gt_masks") for x in real if len(x)):
            raise ValueError(
                "An image of the batch has objects without masks, and DISTILL.AID.MASKS compares "
                "the teacher's with them. Set it False, or MODEL.MASK_ON True and give each "
                "annotation its 'segmentation'."
            )
        return cls(
            boxes=torch.cat([x.gt_boxes.tensor for x in real]).to(device, non_blocking=True),
            classes=torch.cat([x.gt_classes for x in real]).to(device, non_blocking=True),
            counts=[len(x) for x in real],
            ignored=[x.to(device, non_blocking=True) for x in ignored],
            image_sizes=[x.image_size for x in instances],
            pseudo_labeled=[i for i, x in enumerate(batched_inputs) if x.get(PSEUDO_LABELED)],
            masks=[x.gt_masks if len(x) else None for x in real] if with_masks else None,
        )

    @property
    def labeled_images(self) -> list[int]:
        """Indices of the images that the teacher did not label; where there are none, of all."""
        images = range(len(self.counts))
        return [i for i in images if i not in self.pseudo_labeled] or list(images)

    @cached_property
    def counts_on_device(self) -> Tensor:
        """(N,) int64"""
        return torch.tensor(self.counts).to(self.boxes.device, non_blocking=True)

    @cached_property
    def image_index(self) -> Tensor:
        """(M,) int64, the image each object is in."""
        images = torch.arange(len(self.counts), device=self.boxes.device)
        return images.repeat_interleave(self.counts_on_device, output_size=len(self.boxes))

    @cached_property
    def by_area(self) -> Tensor:
        """(M,) int64, indices of the objects: image after image, the smallest box first."""
        area = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1)
        order = torch.argsort(area, stable=True)
        return order[torch.argsort(self.image_index[order], stable=True)]


def split_ignored(instances: Instances) -> tuple[Instances, Tensor]:
    """The real objects of an image, and the boxes (I, 4) of its ignore regions, of class -1."""
    ignored = instances.gt_classes < 0
    return instances[~ignored], instances.gt_boxes.tensor[ignored]
