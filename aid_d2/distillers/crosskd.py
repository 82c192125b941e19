"""CrossKD (Wang et al., *CrossKD: Cross-Head Knowledge Distillation for Object Detection*, CVPR
2024): the student's features through the rest of the teacher's head.
"""

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode as CN

from ..layers.adapters import channel_adapter
from ..layers.matching import counted_anchors
from ..layers.prediction_losses import mimic_losses
from ..modeling.wrappers import DetectorWrapper
from ..modeling.wrappers.fcos import FCOSWrapper
from ..modeling.wrappers.gfl import GFLWrapper
from ..modeling.wrappers.retinanet import RetinaNetWrapper
from ..structures import DistillBatch
from .base import DISTILLER_REGISTRY, Distiller


def rescale(x: Tensor, target: Tensor) -> Tensor:
    """Each channel with the target's statistics, ``(x - mean x) / (std x + 1e-6) std t + mean t``.

    They are taken over the images and the cells that both have; sizes differ by padding alone.

    Args:
        x: (N, C, H, W).
        target: (N, C, H', W').

    Returns:
        (N, C, H, W)
    """
    height, width = (min(x.shape[dim], target.shape[dim]) for dim in (-2, -1))
    (std, mean), (target_std, target_mean) = (
        torch.std_mean(y[..., :height, :width], dim=(0, 2, 3), correction=0, keepdim=True)
        for y in (x, target)
    )
    return (x - mean) / (std + 1e-6) * target_std + target_mean


def activations(tower: nn.Sequential) -> list[int]:
    """Where the activations of a tower are; the input of the i-th is what convolution i gives."""
    return [i for i, layer in enumerate(tower) if isinstance(layer, nn.ReLU)]


def _published(position: int, wrapper: type[DetectorWrapper]) -> CN:
    node = CN()
    node.POSITION = position  # the convolution of both towers after which the heads are crossed
    node.CLS_WEIGHT = wrapper.mimic_cls_weight  # factor on L_cls
    node.BOX_WEIGHT = wrapper.mimic_box_weight  # factor on L_box
    return node


@DISTILLER_REGISTRY.register()
class CrossKD(Distiller):
    """The student's towers up to a convolution, then the teacher's: what this predicts is to equal
    the teacher's own predictions.

        L_cls = sum W sum_k |p - q| BCE(p, q) / N_pos
        L_box = sum W max_k q d(b, b_t) / N_box

    What convolution i of the student's tower gives, before its activation, gets per level the
    channel statistics of the teacher at the same place. It goes through the rest of the frozen
    teacher's tower and its predictor, which give scores p and boxes b; q and b_t are the teacher's
    own. The sums are over the anchors that the student's assigner does not ignore and that are not
    centered in padding. N_pos are its positive ones. d is the KL divergence of the sides for GFL,
    -ln IoU for FCOS and the GIoU loss for RetinaNet. N_box is sum max_k q for GFL, and else N_pos.
    Both are means over GPUs and at least 1. Gradient passes the student's statistics.

    AID's weight W of an anchor's location does not multiply the sum that divides the box loss.

    A choice of this project: where the towers differ in channels, a 1x1 convolution per tower,
    shared by its levels, comes before the statistics.
    """

    needs_predictions = True

    @staticmethod
    def config():
        node = CN()
        # Of the released configs.
        node.RETINANET = _published(3, RetinaNetWrapper)
        node.FCOS = _published(2, FCOSWrapper)
        node.GFL = _published(3, GFLWrapper)
        # Of other detectors, for which nothing is published: those of RetinaNet.
        node.ONE_STAGE = node.RETINANET.clone()
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.student, self.teacher = context.student, context.teacher
        if not self.student.towers:
            raise ValueError(
                "DISTILL.METHODS: CrossKD crosses the towers of dense heads, and none are known of "
                f"a {type(self.student.model).__name__}. Use a RetinaNet, FCOS or GFL."
            )
        self.constants = context.constants(node)
        self._check_position(node)
        self.adapters = nn.ModuleDict()
        for branch in self.teacher.towers:
            self.adapters[branch] = channel_adapter(
                *(self._channels(x.towers[branch]) for x in (self.student, self.teacher))
            )

    def recorded_modules(self, wrapper, side):
        return [tower[self._cut(tower)] for tower in wrapper.towers.values()]

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        student, teacher, objects = batch.student, batch.teacher, batch.objects
        crossed = {branch: self._cross(branch, student, teacher) for branch in self.adapters}
        predicted = self.teacher.predictions(teacher.features, self.teacher.predict(crossed))
        matched_idxs = self.student.matched_idxs(student.predictions, objects)
        cls, box = mimic_losses(
            predicted,
            teacher.predictions,
            batch.weights.per_anchor(teacher.predictions.levels),
            matched_idxs,
            counted_anchors(matched_idxs, teacher.predictions.anchors, objects),
            self.teacher.box_distance(predicted, teacher.predictions),
            self.teacher.mimic_by_confidence,
        )
        return {"cls": self.constants.CLS_WEIGHT * cls, "box": self.constants.BOX_WEIGHT * box}

    def _cross(self, branch, student, teacher) -> list[Tensor]:
        """The output of the teacher's tower on the student's maps, per level."""
        mine, theirs = self.student.towers[branch], self.teacher.towers[branch]
        start = self._cut(theirs)
        calls = zip(student.calls[mine[self._cut(mine)]], teacher.calls[theirs[start]])
        # Level by level and in order, as in the head: its norms may count the levels.
        maps = []
        for own, target in calls:
            own, target = (_float(call.inputs[0]) for call in (own, target))
            maps.append(theirs[start:](rescale(self.adapters[branch](own), target)))
        return maps

    def _cut(self, tower: nn.Sequential) -> int:
        return activations(tower)[self.constants.POSITION - 1]

    def _channels(self, tower: nn.Sequential) -> int:
        before = tower[: self._cut(tower)]
        return [layer.out_channels for layer in before if isinstance(layer, nn.Conv2d)][-1]

    def _check_position(self, node: CN) -> None:
        key = next(key for key, value in node.items() if value is self.constants)
        position = self.constants.POSITION
        for role, wrapper in (("student", self.student), ("teacher", self.teacher)):
            for branch, tower in wrapper.towers.items():
                length = len(activations(tower))
                if not 1 <= position <= length:
                    raise ValueError(
                        f"DISTILL.CROSSKD.{key}.POSITION is {position}, but the "
                        f"{branch} tower of the {role} has {length} convolutions (NUM_CONVS); it "
                        "has to be between 1 and the smaller number of both."
                    )


def _float(x: Tensor) -> Tensor:
    # Under autocast towers compute in half precision.
    return x.to(torch.promote_types(x.dtype, torch.float32))
