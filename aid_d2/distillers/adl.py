"""Adaptive distillation loss (Tang et al., *Learning Efficient Detector with Semi-supervised
Adaptive Distillation*, BMVC 2019).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.distributed import mean_over_gpus
from ..layers.matching import counted_anchors
from ..structures import DistillBatch
from .base import DISTILLER_REGISTRY, Distiller

_PRESETS = ("PAPER", "RELEASED")
_FORMS = ("kl", "ce")


def binary_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL = q log(q/p) + (1-q) log((1-q)/(1-p))``, p = sigmoid(student), q = sigmoid(teacher).

    Args:
        student: logits, any shape.
        teacher: logits, the same shape.

    Returns:
        the same shape, >= 0.
    """
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    # Rounding can leave less than 0, of which the power of the adaptive weight is NaN.
    return (yes + no).clamp(min=0)


def weighted_cross_entropy(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """``CE = -alpha q log p - (1-alpha) (1-q) log(1-p)``, p and q as in :func:`binary_kl`."""
    yes = teacher.sigmoid() * F.logsigmoid(student)
    no = (-teacher).sigmoid() * F.logsigmoid(-student)
    return -alpha * yes - (1 - alpha) * no


def binary_entropy(logits: Tensor) -> Tensor:
    """``H(q) = -q log q - (1-q) log(1-q)``, q = sigmoid(logits), of the same shape."""
    yes = logits.sigmoid() * F.logsigmoid(logits)
    return -yes - (-logits).sigmoid() * F.logsigmoid(-logits)


def adaptive_loss(term: Tensor, exponent: Tensor, gamma: float) -> Tensor:
    """``(1 - exp(-E))^gamma L``: less of what is easy for both detectors.

    Args:
        term: L >= 0, any shape.
        exponent: E >= 0, the same shape. The gradient flows through it too.
        gamma: >= 1, below which the gradient at E = 0 is infinite.

    Returns:
        the same shape.
    """
    return (-torch.expm1(-exponent)) ** gamma * term


def _constants(form: str, beta: float, gamma: float) -> CN:
    node = CN()
    node.FORM = form  # kl, or ce: the alpha-weighted cross-entropy in place of KL
    node.ALPHA = 0.5  # of ce: weight of the score; 1 - ALPHA is that of 1 - score
    node.BETA = beta  # how much the entropy of the teacher's score raises the weight of a term
    node.GAMMA = gamma  # exponent of the weight, 1 or more
    node.THETA = 1.8  # exponent of the teacher's scores in the divisor
    node.TEMPERATURE = 1.0  # T, divides the logits of both
    return node


@DISTILLER_REGISTRY.register()
class ADL(Distiller):
    """Imitation of the class scores, most where the detectors differ or the teacher hesitates.

        ADL = sum (1 - exp(-(KL + beta H(q))))^gamma KL / N,   N = max(1, sum q^theta)

    with the scores p = sigmoid(z_s / T) and q = sigmoid(z_t / T), over all classes of the anchors
    of a GPU. Left out of both sums are anchors that the student's own assignment ignores, and those
    centered in the padding. In Faster R-CNN the score is the objectness of the RPN. AID multiplies
    the sum over the classes of an anchor by the anchor's weight; N does not see it.

    The released kernel (`sigmoid_adaptive_distillation_loss_op.cu`) weights an alpha-weighted
    cross-entropy in place of KL, here FORM "ce". Its exponent is the plain cross-entropy of p and
    q, which is KL + H: beta is 1.
    """

    needs_predictions = True

    @staticmethod
    def config():
        node = CN()
        # Factor on the loss.
        node.WEIGHT = 1.0
        # Whose constants: PAPER or RELEASED.
        node.PRESET = "PAPER"
        node.PAPER = _constants(form="kl", beta=1.5, gamma=1.0)
        node.RELEASED = _constants(form="ce", beta=1.0, gamma=2.0)
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        if node.PRESET not in _PRESETS:
            raise ValueError(f"DISTILL.ADL.PRESET is {node.PRESET!r}; choose one of {_PRESETS}.")
        constants, name = node[node.PRESET], f"DISTILL.ADL.{node.PRESET}"
        if constants.FORM not in _FORMS:
            raise ValueError(f"{name}.FORM is {constants.FORM!r}; choose one of {_FORMS}.")
        for key, least in (("BETA", 0), ("GAMMA", 1)):
            if not constants[key] >= least:
                raise ValueError(f"{name}.{key} is {constants[key]}; it has to be {least} or more.")
        self.weight, self.constants = node.WEIGHT, constants
        self.student = context.student

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        constants, predictions, objects = self.constants, batch.student.predictions, batch.objects
        s, t = (
            x.predictions.logits / constants.TEMPERATURE for x in (batch.student, batch.teacher)
        )
        kl = binary_kl(s, t)
        term = kl if constants.FORM == "kl" else weighted_cross_entropy(s, t, constants.ALPHA)
        exponent = kl + constants.BETA * binary_entropy(t)
        loss = adaptive_loss(term, exponent, constants.GAMMA).sum(-1)

        matched_idxs = self.student.matched_idxs(predictions, objects)
        counted = counted_anchors(matched_idxs, predictions.anchors, objects)
        normalizer = (counted * (t.sigmoid() ** constants.THETA).sum(-1)).sum()
        # Of all GPUs, as N_pos of other methods: one without objects would count more.
        normalizer = mean_over_gpus(normalizer).clamp(min=1)
        weight = batch.weights.per_anchor(predictions.levels) * counted
        return {"cls": self.weight * (weight * loss).sum() / normalizer}
