"""MGD (Yang et al., *Masked Generative Distillation*, ECCV 2022)."""

from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode as CN
from detectron2.utils.events import get_event_storage

from ..layers.adapters import PerLevel, channel_adapters
from ..layers.distance import squared_error
from ..structures import DistillBatch
from .base import DISTILLER_REGISTRY, Distiller


def random_mask(shape: tuple[int, ...], ratio: float, generator: torch.Generator) -> Tensor:
    """False with probability ``ratio``, and else True, on the device of the generator."""
    return torch.rand(shape, generator=generator, device=generator.device) >= ratio


@DISTILLER_REGISTRY.register()
class MGD(Distiller):
    """Generation of the teacher's maps from the student's, of which random locations are blanked:

        L = 1/N sum W (T - G(M f(S)))^2,    G = conv3x3, ReLU, conv3x3

    summed over levels. M is 0 at a share of the locations and drawn anew in each step; f is a 1x1
    convolution where the numbers of channels differ. AID's map W weights each squared difference.

    The sum over locations makes the loss grow with the area of the images, as published. The masks
    have random numbers of their own, so that the student's are those of plain training.
    """

    supports_bf16 = True

    @staticmethod
    def config():
        node = CN()
        # Weight on each level, and share of locations that are blanked (released configs).
        node.ONE_STAGE = CN({"WEIGHT": 2e-5, "RATIO": 0.65})
        node.TWO_STAGE = CN({"WEIGHT": 5e-7, "RATIO": 0.45})
        return node

    def __init__(self, node, context):
        super().__init__(node, context)
        self.constants = context.constants(node)
        self.adapters = channel_adapters(context.pairs)
        self.generators = PerLevel(context.pairs, lambda pair: _generation(pair.teacher_channels))
        # Processes that start from different seeds mask different locations.
        self.seed = torch.initial_seed() % 2**62

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        device = next(iter(batch.student.features.values())).device
        # By the iteration, so that a resumed run masks other locations than its beginning did.
        seed = self.seed + get_event_storage().iter
        generator = torch.Generator(device).manual_seed(seed)
        total: Any = 0.0
        for stride, s in batch.student.features.items():
            mask = random_mask((len(s), 1, *s.shape[-2:]), self.constants.RATIO, generator)
            generated = self.generators[stride](mask * self.adapters[stride](s))
            t, weight = batch.teacher.features[stride], batch.weights.maps[stride]
            total = total + squared_error(generated, t, weight) / len(t)
        return {"generation": self.constants.WEIGHT * total}


def _generation(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
