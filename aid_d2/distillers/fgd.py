"""FGD (Yang et al., *Focal and Global Knowledge Distillation for Detectors*, CVPR 2022)."""

from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode as CN

from ..layers.adapters import PerLevel, channel_adapters
from ..layers.attention import attention_loss, attentions
from ..layers.cells import boxes_in_cells, smallest_objects
from ..layers.distance import squared_error
from ..structures import DistillBatch, Objects
from .base import DISTILLER_REGISTRY, Distiller


def object_masks(index: Tensor, objects: Objects, stride: int) -> tuple[Tensor, Tensor]:
    """M_fg and M_bg (Yang et al., eq. 3 to 5) of a level, each (N, 1, H, W).

    M_fg is 1 / the cells of the smallest object that covers a cell, M_bg 1 / the cells of the image
    that show no object; elsewhere they are 0.

    Args:
        index: of :func:`~aid_d2.layers.cells.smallest_objects` (N, H, W).
        objects: the ground truth.
        stride: of the level.
    """
    index = index[:, None]
    low, high = boxes_in_cells(objects.boxes, stride)
    shares = torch.cat([1 / (high - low).prod(1), low.new_zeros(1)])
    background = (index < 0).to(shares)
    return shares[index], background / background.sum((1, 2, 3), keepdim=True).clamp(min=1)


class GlobalContext(nn.Module):
    """``x + W2 ReLU(LN(W1 sum_hw softmax_hw(w x) x))`` (Yang et al., eq. 11; GCNet, Cao et al.,
    2019). It starts as the identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(channels // 2, 1)
        # A bias would cancel in the softmax.
        self.attend = nn.Conv2d(channels, 1, 1, bias=False)
        last = nn.Linear(inner, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.transform = nn.Sequential(
            nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(), last
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), as is the result."""
        attention = self.attend(x).flatten(1).softmax(1)
        context = torch.einsum("ncl,nl->nc", x.flatten(2), attention)
        return x + self.transform(context)[:, :, None, None]


def _published(scale: float, temperature: float) -> CN:
    node = CN()
    node.FOREGROUND_WEIGHT = 1e-3 * scale
    node.BACKGROUND_WEIGHT = 5e-4 * scale
    node.ATTENTION_WEIGHT = 5e-4 * scale
    node.GLOBAL_WEIGHT = 5e-4 * scale / 100
    node.TEMPERATURE = temperature  # T of both attentions
    return node


@DISTILLER_REGISTRY.register()
class FGD(Distiller):
    """Imitation of objects and background apart, where the teacher attends, and of global context:

        L = 1/N [ a sum W M_fg A (T - S)^2 + b sum W M_bg A (T - S)^2
                  + g (sum w |Ac_s - Ac_t| + sum W |As_s - As_t|) + l sum W (GC(T) - GC(S))^2 ]

    summed over levels. As and Ac are the attentions in space and channels, A = As_t Ac_t, and GC a
    global context block of each detector. S is adapted by a 1x1 convolution where the numbers of
    channels differ. AID's map is W, and w its mean under As_t.

    The terms of As and GC grow with the area of the images, as published. It was published with the
    gradient of all parameters clipped to a norm of 35 and DISTILL.INHERIT. SOLVER.CLIP_GRADIENTS
    clips each parameter; without it a training can diverge.
    """

    @staticmethod
    def config():
        node = CN()
        # a, b, g and l of the released configs. For Faster R-CNN a and b are a twentieth, g and l a
        # tenth.
        node.ONE_STAGE = _published(1.0, 0.5)
        node.FCOS = _published(1.6, 0.8)
        node.TWO_STAGE = _published(0.05, 0.5)
        node.TWO_STAGE.ATTENTION_WEIGHT = 5e-5
        node.TWO_STAGE.GLOBAL_WEIGHT = 5e-7
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.constants = context.constants(node)
        self.adapters = channel_adapters(context.pairs)
        self.student_contexts, self.teacher_contexts = (
            PerLevel(context.pairs, lambda pair: GlobalContext(pair.teacher_channels))
            for _ in range(2)
        )

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        parts: dict[str, Any] = dict.fromkeys(
            ("foreground", "background", "attention", "global"), 0.0
        )
        shown = smallest_objects(batch.objects, batch.levels)
        for (stride, s), index in zip(batch.student.features.items(), shown):
            s, t = self.adapters[stride](s), batch.teacher.features[stride]
            weight = batch.weights.maps[stride]
            foreground, background = object_masks(index, batch.objects, stride)
            of_student, of_teacher = (attentions(x, self.constants.TEMPERATURE) for x in (s, t))
            pooled = batch.weights.pooled(stride, of_teacher.space)
            contexts = self.student_contexts[stride](s), self.teacher_contexts[stride](t)
            for part, mask in (("foreground", foreground), ("background", background)):
                parts[part] += squared_error(s, t, weight * mask, of_teacher.both) / len(t)
            parts["attention"] += attention_loss(of_student, of_teacher, weight, pooled)
            parts["global"] += squared_error(*contexts, weight) / len(t)
        return {part: self.constants[f"{part.upper()}_WEIGHT"] * x for part, x in parts.items()}
