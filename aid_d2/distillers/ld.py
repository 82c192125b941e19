"""Localization distillation (Zheng et al., *Localization Distillation for Dense Object Detection*,
CVPR 2022).
"""

from torch import Tensor

from detectron2.config import CfgNode as CN

from ..layers.prediction_losses import distribution_divergence
from ..structures import DistillBatch
from .base import DISTILLER_REGISTRY, Distiller


def side_divergence(student: Tensor, teacher: Tensor, bins: int, temperature: float) -> Tensor:
    """``T^2 mean_4 mean_bins KL(softmax(z_t / T) || softmax(z_s / T))`` of the box sides.

    The terms of the KL are averaged over the bins and not summed, as in the released code.

    Args:
        student: (..., 4 bins) logits of the distances to the four sides.
        teacher: the same shape.
        bins: of a distribution.
        temperature: T.

    Returns:
        (...)
    """
    divergence = distribution_divergence(student / temperature, teacher / temperature)
    return temperature**2 / bins * divergence


@DISTILLER_REGISTRY.register()
class LD(Distiller):
    """Imitation of GFL's box distributions on the student's positive anchors.

        L = 0.25 sum_pos q LD

    with LD of :func:`side_divergence` and q the student's highest score without gradient. As in the
    released code the sum has no divisor, unlike those of GFL's own box losses, so that its strength
    grows with the objects in a batch. This is the paper's main region; its valuable localization
    region is left out. AID multiplies LD of an anchor by the anchor's weight.
    """

    needs_predictions = True

    @staticmethod
    def config():
        node = CN()
        # Factor on the loss.
        node.WEIGHT = 0.25
        # T, divides the logits of both.
        node.TEMPERATURE = 10.0
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.constants = node
        if context.student.box_bins is None:
            raise ValueError(
                "DISTILL.METHODS: LD compares distributions of box sides, which a "
                f"{type(context.student.model).__name__} does not predict. Use a GFL."
            )
        self.bins = context.student.box_bins
        self.student = context.student

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        predictions, theirs = batch.student.predictions, batch.teacher.predictions
        loss = side_divergence(
            predictions.regression,
            theirs.regression,
            self.bins,
            self.constants.TEMPERATURE,
        )
        # To compute it for all anchors and select by weight needs no wait for the device.
        positive = self.student.matched_idxs(predictions, batch.objects) >= 0
        weight = positive * predictions.logits.detach().sigmoid().amax(-1)
        total = (batch.weights.per_anchor(predictions.levels) * weight * loss).sum()
        return {"box": self.constants.WEIGHT * total}
