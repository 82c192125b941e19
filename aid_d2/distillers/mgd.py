"""MGD (Yang et al., *Masked Generative Distillation*, ECCV 2022)."""

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode as CN
from detectron2.utils.events import get_event_storage

from .adapters import channel_adapters
from .base import DISTILLER_REGISTRY, Distiller


def random_mask(shape: tuple[int, ...], ratio: float, generator: torch.Generator) -> Tensor:
    """False with probability ``ratio``, and else True, on the device of the generator."""
    return torch.rand(shape, generator=generator, device=generator.device) >= ratio


def generation_loss(teacher: Tensor, generated: Tensor, weight: Tensor) -> Tensor:
    """``1/N sum W (T - G)^2`` (Yang et al.; the division by N as released).

    Args:
        teacher: T (N, C, H, W).
        generated: G of the same shape.
        weight: W of AID (N, 1, H, W).
    """
    return (weight * (teacher - generated).square()).sum() / len(teacher)


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
        self.generators = nn.ModuleDict(
            {str(pair.stride): _generation(pair.teacher_channels) for pair in context.pairs}
        )
        # Processes that start from different seeds mask different locations.
        self.seed = torch.initial_seed() % 2**62

    def forward(self, student, teacher, weights):
        device = next(iter(student.features.values())).device
        # By the iteration: a step that is run again has the same masks.
        seed = self.seed + get_event_storage().iter
        generator = torch.Generator(device).manual_seed(seed)
        total = 0.0
        for stride, s in student.features.items():
            key = str(stride)
            mask = random_mask((len(s), 1, *s.shape[-2:]), self.constants.RATIO, generator)
            generated = self.generators[key](mask * self.adapters[key](s))
            total = total + generation_loss(
                teacher.features[stride], generated, weights.maps[stride]
            )
        return {"generation": self.constants.WEIGHT * total}


def _generation(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
