"""Decoupled knowledge distillation (Zhao et al., CVPR 2022) of the class scores of a box head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.matching import label_proposals
from ..structures import DistillBatch
from .base import DISTILLER_REGISTRY, Distiller, check_levels_double


def decoupled_divergence(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two parts of ``KL(softmax(z_t / T) || softmax(z_s / T))``, times T^2.

        TCKD = KL(b_t || b_s),      b = (p of the target, sum of the others)
        NCKD = KL(p^_t || p^_s),    p^ = softmax over the classes without the target

    Args:
        student: (P, C) logits, C >= 2.
        teacher: (P, C) logits.
        target: (P,) int64, class of each.
        temperature: T.

    Returns:
        TCKD and NCKD, each (P,).
    """
    of_target = F.one_hot(target, student.shape[1]).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits / temperature
        others = logits.masked_fill(of_target, float("-inf"))
        binary = torch.stack(
            [logits.gather(1, target[:, None]).squeeze(1), others.logsumexp(1)], dim=1
        )
        # The target gets log p^ = 0 from both, and so adds nothing; -inf would give NaN.
        return binary.log_softmax(1), others.log_softmax(1).masked_fill(of_target, 0.0)

    tckd, nckd = (
        temperature**2 * F.kl_div(s, t, reduction="none", log_target=True).sum(1)
        for s, t in zip(split(student), split(teacher))
    )
    return tckd, nckd


@DISTILLER_REGISTRY.register()
class DKD(Distiller):
    """Imitation of the teacher's box head on the student's proposals.

        L = alpha mean TCKD + beta mean NCKD

    over the proposals that the student's box head was trained on in this step; the teacher's box
    head scores the same boxes on its own maps. The target of :func:`decoupled_divergence` is the
    proposal's ground-truth class, background included. AID multiplies both terms of a proposal by
    the weight of its box.
    """

    @staticmethod
    def config():
        node = CN()
        # Factor on TCKD, the target against the other classes.
        node.ALPHA = 1.0
        # Factor on NCKD, the other classes among each other. 0.25 is the value for detectors.
        node.BETA = 0.25
        # T, divides the logits of both.
        node.TEMPERATURE = 1.0
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        for role, wrapper in (("student", context.student), ("teacher", context.teacher)):
            if wrapper.box_head_lacks:
                raise ValueError(
                    f"DISTILL.METHODS: DKD needs a {role} with {wrapper.box_head_lacks}."
                )
        check_levels_double("DKD", context)
        student, teacher = context.student, context.teacher
        if student.num_classes != teacher.num_classes:
            raise ValueError(
                f"DISTILL.METHODS: DKD compares class scores, but MODEL.ROI_HEADS.NUM_CLASSES is "
                f"{student.num_classes} in the student and {teacher.num_classes} in the teacher. "
                "Use a teacher of the same classes."
            )
        strides = {pair.stride for pair in context.pairs}
        shared = {level.name for level in teacher.levels if level.stride in strides}
        needed = set(teacher.model.roi_heads.box_in_features)
        if not needed <= shared:
            raise ValueError(
                f"DISTILL.METHODS: DKD runs the teacher's box head, which needs the maps "
                f"{sorted(needed)}; the student shares only {sorted(shared)}. Use a teacher with "
                "the student's MODEL.ROI_HEADS.IN_FEATURES."
            )
        self.constants = node
        self.student, self.teacher = student, teacher

    def recorded_modules(self, wrapper, side):
        if side == "teacher":
            return []
        heads = wrapper.model.roi_heads
        return [heads.box_pooler, heads.box_predictor]

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        heads = self.student.model.roi_heads
        proposals = batch.student.calls[heads.box_pooler][-1].inputs[1]
        boxes = [x.tensor for x in proposals]
        with torch.no_grad():
            theirs, _ = self.teacher.score(batch.teacher.features, boxes)
            weight = batch.weights.per_box(boxes)
            labeled = label_proposals(
                proposals, batch.objects, heads.proposal_matcher, self.student.num_classes
            )
            target = torch.cat([x.gt_classes for x in labeled])
        # Under autocast the student's are in half precision.
        logits = batch.student.calls[heads.box_predictor][-1].output[0].to(theirs.dtype)
        parts = decoupled_divergence(logits, theirs, target, self.constants.TEMPERATURE)
        tckd, nckd = ((weight * x).sum() / max(len(x), 1) for x in parts)
        return {"target": self.constants.ALPHA * tckd, "nontarget": self.constants.BETA * nckd}
