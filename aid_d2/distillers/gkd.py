"""GKD with BMFI (Lan & Tian, *Gradient-Guided Knowledge Distillation for Object Detectors*, WACV
2024), by the authors of AID.
"""

from typing import Any

import torch
from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.adapters import channel_adapters
from ..layers.attention import attention_loss, attentions
from ..layers.cells import boxes_in_cells
from ..layers.distance import squared_error
from ..modeling.modes import evaluating
from ..modeling.wrappers import DetectorWrapper
from ..structures import DistillBatch, Objects
from .base import DISTILLER_REGISTRY, Distiller

# Of the released code: a map stays near 0 where the loss hardly depends on the features.
_EPSILON = 1e-7


def gradient_map(features: Tensor, gradient: Tensor) -> Tensor:
    """``G = ReLU(sum_k w_k A_k)``, ``w_k = sum_hw dL/dA_k``, over its maximum in each image (plus
    1e-7, lest a mean over many locations be as small).

    Args:
        features: A (N, C, H, W).
        gradient: dL/dA of the same shape, which counts as constant.

    Returns:
        (N, 1, H, W) in [0, 1).
    """
    importance = gradient.sum((2, 3), keepdim=True)
    found = (importance * features).sum(1, keepdim=True).relu()
    return found / (found.amax((2, 3), keepdim=True) + _EPSILON)


def box_masks(objects: Objects, stride: int, height: int, width: int) -> Tensor:
    """M of a level (N, 1, H, W): the largest over the objects of ``1 / (w h)`` times 1 in the box,
    ``exp(-2 ((x - cx) / w)^2 - 2 ((y - cy) / h)^2)`` around it, and 0 outside the box of twice its
    sides, w and h, about the same center; in cells.
    """
    low, high = boxes_in_cells(objects.boxes, stride)
    sides = 2 * (high - low)
    cells = [torch.arange(size, device=low.device) + 0.5 for size in (width, height)]
    inside, around, falling = [], [], []
    for axis, x in enumerate(cells):
        start, end, side = (y[:, axis, None] for y in (low, high, sides))
        distance = (x - (start + end) / 2).abs() / side
        inside.append((x > start) & (x < end))
        around.append(distance <= 0.5)
        falling.append(torch.exp(-2 * distance.square()))

    def plane(parts: list[Tensor]) -> Tensor:
        """(M, H, W), of what holds for columns and rows."""
        columns, rows = parts
        return rows[:, :, None] * columns[:, None, :]

    values = torch.where(plane(inside), 1.0, plane(falling) * plane(around))
    values = values / sides.prod(1)[:, None, None]
    masks = values.new_zeros(len(objects.counts), height, width)
    images = objects.image_index[:, None, None].expand_as(values)
    return masks.scatter_reduce(0, images, values, "amax")[:, None]


def task_gradients(
    wrapper: DetectorWrapper, features: dict[int, Tensor], objects: Objects
) -> dict[int, Tensor]:
    """Gradient of a detector's own loss, times the number of images, with respect to its maps, by
    one pass through its heads. In the released code each image has a loss of its own.

    Args:
        wrapper: of the detector, whose norms compute as in evaluation. Neither its parameters nor
            their gradients change.
        features: maps (N, C, H, W) per stride, finest first.
        objects: the ground truth.
    """
    maps = {stride: x.detach().requires_grad_() for stride, x in features.items()}
    # Also while PreciseBN averages statistics, without gradient.
    with evaluating(wrapper.model), torch.enable_grad():
        with wrapper.autocast():
            head_outputs = wrapper.head(list(maps.values()))
        losses = wrapper.unreduced_losses(maps, head_outputs, objects)
        loss = losses.dense if losses.roi is None else losses.dense + losses.mean_roi
        loss = len(objects.counts) * loss
    found = torch.autograd.grad(loss, list(maps.values()), materialize_grads=True)
    return dict(zip(maps, found))


@DISTILLER_REGISTRY.register()
class GKD(Distiller):
    """Where a detector's loss depends on its maps, and imitation around objects:

        L = b mean W |G_T - G_S|
            + 1/N [ a sum W M A (T - S)^2 + g (sum w |Ac_s - Ac_t| + sum W |As_s - As_t|) ]

    summed over levels. G is the :func:`gradient_map` of a detector, M the :func:`box_masks`, and
    A = As_t Ac_t with the attentions of FGD. S is adapted by a 1x1 convolution where the numbers of
    channels differ. AID's map is W, and w its mean under As_t.

    The released code makes G from the image file, without the batch's flip and scale, from the ten
    highest detections of each model, and without a gradient. Here it is made from the batch and the
    ground truth, by one more pass of each detector's heads, and L_GKD reaches the student's maps
    through A_k, w_k being constant. With DISTILL.INHERIT the student starts from the teacher's neck
    and head, as published.

    a and g, the box-aware imitation (BMFI), are 0 in all released configs, and by default. With
    them clip gradients as for FGD (SOLVER.CLIP_GRADIENTS): on levels without a norm the attention
    is so sharp that a training can diverge.
    """

    @staticmethod
    def config():
        node = CN()
        node.GRADIENT_WEIGHT = 0.5  # b; the released configs have 0.01, 0.1 and 0.5
        # a and g; 1e-3 are the default arguments of the released code.
        node.FEATURE_WEIGHT = 0.0
        node.ATTENTION_WEIGHT = 0.0
        node.TEMPERATURE = 0.5  # of both attentions
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.node = node
        self.student, self.teacher = context.student, context.teacher
        for role, wrapper in (("student", self.student), ("teacher", self.teacher)):
            _check_loss(role, wrapper, len(context.pairs))
        if self.student.num_classes != self.teacher.num_classes:
            raise ValueError(
                f"DISTILL.METHODS: GKD asks both detectors for their loss on the ground truth, but "
                f"the student has {self.student.num_classes} classes and the teacher "
                f"{self.teacher.num_classes}. Use a teacher of the same classes, or a method that "
                "compares features alone, such as PKD."
            )
        self.imitates = node.FEATURE_WEIGHT > 0 or node.ATTENTION_WEIGHT > 0
        self.adapters = channel_adapters(context.pairs if self.imitates else ())

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        losses = {"gradient": self.node.GRADIENT_WEIGHT * self._guidance(batch)}
        return {**losses, **self._imitation(batch)} if self.imitates else losses

    def _guidance(self, batch: DistillBatch) -> Tensor:
        own, theirs = (
            (features, task_gradients(wrapper, features, batch.objects))
            for wrapper, features in (
                (self.student, batch.student.features),
                (self.teacher, batch.teacher.features),
            )
        )
        total: Any = 0.0
        for stride, weight in batch.weights.maps.items():
            s, t = (gradient_map(x[stride], y[stride]) for x, y in (own, theirs))
            total += (weight * (t - s).abs()).mean()
        return total

    def _imitation(self, batch: DistillBatch) -> dict[str, Tensor]:
        node = self.node
        feature: Any = 0.0
        attention: Any = 0.0
        for stride, own in batch.student.features.items():
            t, weight = batch.teacher.features[stride], batch.weights.maps[stride]
            s = self.adapters[stride](own)
            of_student, of_teacher = (attentions(x, node.TEMPERATURE) for x in (s, t))
            pooled = batch.weights.pooled(stride, of_teacher.space)
            mask = box_masks(batch.objects, stride, *t.shape[-2:])
            feature += squared_error(s, t, weight * mask, of_teacher.both) / len(t)
            attention += attention_loss(of_student, of_teacher, weight, pooled)
        return {
            "feature": node.FEATURE_WEIGHT * feature,
            "attention": node.ATTENTION_WEIGHT * attention,
        }


def _check_loss(role: str, wrapper: DetectorWrapper, shared_levels: int) -> None:
    other = "Use a method that compares features alone, such as PKD."
    try:
        wrapper.check_losses()
    except NotImplementedError as error:
        raise ValueError(
            f"DISTILL.METHODS: GKD follows the {role}'s own loss back to its maps, and the loss of "
            f"a {wrapper.name} is not known. {other}"
        ) from error
    if shared_levels < len(wrapper.levels):
        raise ValueError(
            f"DISTILL.METHODS: GKD needs the whole pyramid of the {role}, strides "
            f"{[x.stride for x in wrapper.levels]}, and student and teacher share {shared_levels} "
            f"of its levels. Use pyramids of equal levels. {other}"
        )
