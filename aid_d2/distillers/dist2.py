"""Dist2, *Distribution-Guided Distillation* (Guo, Li, Liu, Luo and Wang, poster of Alibaba DAMO
Academy): the student's features are to be good input of the teacher's head.
"""

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode as CN

from ..layers.adapters import PerLevel, channel_adapters, identity_conv
from ..layers.distance import mean_squared_error
from ..layers.matching import counted_anchors
from ..layers.prediction_losses import mimic_losses
from ..modeling.context import DistillContext
from ..structures import DistillBatch, DistillWeights, UnreducedLosses
from .base import DISTILLER_REGISTRY, Distiller, check_levels_double

# Student's map 2 teacher's map: of the backbone below the pyramid (B) or of the pyramid (N: neck).
STRATEGIES = ("B2B", "N2N", "N2B", "B2N")
ALL = "All2All"
TARGETS = ("ground_truth", "teacher")


def detection_loss(losses: UnreducedLosses, weights: DistillWeights) -> Tensor:
    """The loss of the detector whose unreduced losses these are, with its own normalizers.

    ``sum W (L_cls + L_box) / N`` over the anchors, and of a two-stage detector ``sum W L_roi / M``
    over the M objects.
    """
    total = (
        weights.per_anchor(losses.levels) * losses.anchor_losses
    ).sum() / losses.batch_normalizer
    if losses.roi is None:
        return total
    objects = losses.objects
    weight = weights.per_box(objects.boxes.split(objects.counts))
    return total + (weight * losses.roi).sum() / max(len(losses.roi), 1)


@DISTILLER_REGISTRY.register()
class Dist2(Distiller):
    """Detection imitation (DI) and feature imitation (FI).

    DI puts the student's pyramid through the frozen head of the teacher, and optimizes what comes
    out: against the ground truth, by the loss of the teacher's detector, or against the teacher's
    own predictions, by :func:`mimic_losses` as in CrossKD, with its factor on the box loss and
    without its rescaling of maps. A Faster R-CNN has in the first case the expected RPN loss and
    the box head's loss on the objects' own boxes, in the second the RPN alone. N_pos is that of the
    teacher's assigner; no running mean takes part.

    FI is the mean squared error between a map of the student, through a 1x1 convolution, and one of
    the teacher. A strategy such as B2N says which: the student's backbone against the teacher's
    pyramid. Levels, being those of the pyramids that both have, and strategies are summed.

    AID's weight multiplies each squared element of FI, and in DI the loss of each anchor and, with
    the mean inside its box, of each object.

    At the start the student's maps have a scale and meaning that the teacher's head has never seen,
    so that DI is huge. Raise the loss over some iterations by DISTILL.WARMUP_ITERS, and let the
    student start from the teacher's pyramid and head by DISTILL.INHERIT.

    The weights of both parts are not published; 1 is this project's choice, as is the 1x1
    convolution before the teacher's head at levels whose channels differ.
    """

    @staticmethod
    def config():
        node = CN()
        # Factor on DI; 0 leaves it out.
        node.DI_WEIGHT = 1.0
        # What DI is to predict: ground_truth, or what the teacher predicts.
        node.DI_TARGET = "ground_truth"
        # Factor on FI.
        node.FI_WEIGHT = 1.0
        # Strategies of FI: some of B2B, N2N, N2B and B2N (student 2 teacher; Backbone, Neck), or
        # All2All for all four. Without one there is no FI.
        node.IMITATION = ("All2All",)
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.node = node
        self.student, self.teacher = context.student, context.teacher
        self.strategies = _parse(node.IMITATION)
        if node.DI_WEIGHT == 0 and not self.strategies:
            raise ValueError(
                "DISTILL.DIST2.DI_WEIGHT is 0 and IMITATION is empty: nothing is left to learn."
            )
        if node.DI_WEIGHT != 0:
            self._check_imitable(context)
            self.adapters = channel_adapters(context.pairs)
        self._check_bottom_up()
        self.transforms = nn.ModuleDict({x: self._transforms(x, context) for x in self.strategies})

    def recorded_modules(self, wrapper, side):
        end = 0 if side == "student" else -1
        if any(strategy[end] == "B" for strategy in self.strategies):
            return [wrapper.model.backbone.bottom_up]
        return []

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        losses = {}
        if self.node.DI_WEIGHT != 0:
            losses["di"] = self.node.DI_WEIGHT * self._imitate_detection(batch)
        if self.strategies:
            parts = [x for strategy in self.strategies for x in self._imitate(strategy, batch)]
            losses["fi"] = self.node.FI_WEIGHT * sum(parts)
        return losses

    def _imitate_detection(self, batch: DistillBatch) -> Tensor:
        features = {s: self.adapters[s](x) for s, x in batch.student.features.items()}
        head_outputs = self.teacher.head(list(features.values()))
        if self.node.DI_TARGET == "ground_truth":
            losses = self.teacher.unreduced_losses(features, head_outputs, batch.objects)
            return detection_loss(losses, batch.weights)
        predicted, target = (
            self.teacher.predictions(features, head_outputs),
            self._target(batch.teacher),
        )
        matched_idxs = self.teacher.matched_idxs(predicted, batch.objects)
        cls, box = mimic_losses(
            predicted,
            target,
            batch.weights.per_anchor(predicted.levels),
            matched_idxs,
            counted_anchors(matched_idxs, predicted.anchors, batch.objects),
            self.teacher.box_distance(predicted, target),
            self.teacher.mimic_by_confidence,
        )
        return self.teacher.mimic_cls_weight * cls + self.teacher.mimic_box_weight * box

    @torch.no_grad()
    def _target(self, teacher):
        """The teacher's own predictions, which are there if AID or a method asked for them."""
        head_outputs = teacher.head_outputs
        if head_outputs is None:
            head_outputs = self.teacher.head(list(teacher.features.values()))
        return self.teacher.predictions(teacher.features, head_outputs)

    def _imitate(self, strategy: str, batch: DistillBatch) -> list[Tensor]:
        """The loss of a strategy of FI on each level."""
        source = _maps(strategy[0], self.student, batch.student)
        target = _maps(strategy[-1], self.teacher, batch.teacher)
        losses = []
        for stride in self.transforms[strategy]:
            weight = batch.weights.maps[stride]
            # Maps of the backbone still have the padding of each detector.
            height, width = weight.shape[-2:]
            s, t = (x[stride][..., :height, :width] for x in (source, target))
            losses.append(mean_squared_error(self.transforms[strategy][stride](s), t, weight))
        return losses

    def _transforms(self, strategy: str, context: DistillContext) -> PerLevel:
        neck = [
            {x.stride: x.student_channels for x in context.pairs},
            {x.stride: x.teacher_channels for x in context.pairs},
        ]
        source, target = (
            channels if kind == "N" else _bottom_up_channels(wrapper)
            for kind, channels, wrapper in zip(
                (strategy[0], strategy[-1]), neck, (self.student, self.teacher)
            )
        )
        pairs = [x for x in context.pairs if x.stride in source and x.stride in target]
        if not pairs:
            raise ValueError(
                f"DISTILL.DIST2.IMITATION: {strategy} finds no maps of equal stride among the "
                f"student's {sorted(source)}, the teacher's {sorted(target)} and the levels of "
                f"both pyramids {[x.stride for x in context.pairs]}. Leave it out."
            )
        return PerLevel(pairs, lambda x: identity_conv(source[x.stride], target[x.stride], 1))

    def _check_imitable(self, context: DistillContext) -> None:
        target = self.node.DI_TARGET
        leave_out = "or leave DI out by DISTILL.DIST2.DI_WEIGHT 0."
        if target not in TARGETS:
            raise ValueError(f"DISTILL.DIST2.DI_TARGET is {target!r}; choose one of {TARGETS}.")
        if self.teacher.head is None:
            raise ValueError(
                "DISTILL.DIST2: DI needs the teacher's dense head, and none is known of a "
                f"{type(self.teacher.model).__name__}. Register a DetectorWrapper, {leave_out}"
            )
        if len(context.pairs) < len(self.teacher.levels):
            raise ValueError(
                f"DISTILL.DIST2: the teacher's head needs maps at strides "
                f"{[x.stride for x in self.teacher.levels]}, and the student shares only "
                f"{[x.stride for x in context.pairs]}. Use pyramids of equal levels, {leave_out}"
            )
        if target == "teacher":
            return
        if self.teacher.two_stage:
            check_levels_double("Dist2", context)
        classes = self.student.num_classes, self.teacher.num_classes
        if classes[0] != classes[1]:
            raise ValueError(
                f"DISTILL.DIST2: the student has {classes[0]} classes and the teacher has "
                f"{classes[1]}, so that its head cannot predict the ground truth. Use a teacher "
                f"of the same classes, set DISTILL.DIST2.DI_TARGET teacher, {leave_out}"
            )
        try:
            self.teacher.check_losses()
        except NotImplementedError as error:
            raise ValueError(
                "DISTILL.DIST2: the loss of the teacher's detector is not known. Set "
                f"DISTILL.DIST2.DI_TARGET teacher, {leave_out}"
            ) from error

    def _check_bottom_up(self) -> None:
        has = [hasattr(x.model.backbone, "bottom_up") for x in (self.student, self.teacher)]
        works = [x for x in STRATEGIES if (has[0] or x[0] == "N") and (has[1] or x[-1] == "N")]
        if not set(self.strategies) <= set(works):
            who = " and ".join(x for x, ok in zip(("student", "teacher"), has) if not ok)
            raise ValueError(
                f"DISTILL.DIST2.IMITATION is {tuple(self.node.IMITATION)}, but the backbone of the "
                f"{who} has no `bottom_up` whose maps could be compared. Choose among {works}."
            )


def _parse(imitation) -> list[str]:
    unknown = set(imitation) - {*STRATEGIES, ALL}
    if unknown or isinstance(imitation, str):
        raise ValueError(
            f"DISTILL.DIST2.IMITATION is {imitation!r}; it has to be a tuple of some of "
            f"{STRATEGIES}, or ({ALL!r},) for all."
        )
    return [x for x in STRATEGIES if x in imitation or ALL in imitation]


def _bottom_up_channels(wrapper) -> dict[int, int]:
    shapes = wrapper.model.backbone.bottom_up.output_shape()
    return {shape.stride: shape.channels for shape in shapes.values()}


def _maps(kind: str, wrapper, outputs) -> dict[int, Tensor]:
    """Per stride the maps of the backbone (B) or the pyramid (N)."""
    if kind == "N":
        return outputs.features
    bottom_up = wrapper.model.backbone.bottom_up
    (call,) = outputs.calls[bottom_up]
    # Of two maps of one stride the deeper comes later. Under autocast they are in half precision.
    return {x.stride: call.output[name].float() for name, x in bottom_up.output_shape().items()}
