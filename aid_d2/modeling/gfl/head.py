"""GFL's head: two towers that all levels share (Li et al., NeurIPS 2020)."""

import math

import torch
from torch import Tensor, nn

from detectron2.layers import Conv2d, ShapeSpec, get_norm

from ...layers.norms import group_norm


class GFLHead(nn.Module):
    """Two towers and two predictors, shared by all levels but for a scale of the box logits.

    Args:
        input_shape: the maps, of equal channels, which are also the channels of the towers.
        num_classes: K.
        num_convs: 3x3 convolutions in each tower.
        reg_max: n of the box distributions over 0, 1, ..., n.
        norm: as for :func:`detectron2.layers.get_norm`.
        prior_prob: score of every class at the start.
    """

    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        reg_max: int = 16,
        norm=group_norm,
        prior_prob: float = 0.01,
    ):
        super().__init__()
        channels = input_shape[0].channels
        self.cls_tower = _tower(channels, num_convs, norm)
        self.box_tower = _tower(channels, num_convs, norm)
        self.cls_score = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_distribution = nn.Conv2d(channels, 4 * (reg_max + 1), 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in input_shape])
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """
        Args:
            features: per level (N, C, H, W).

        Returns:
            per level class logits (N, K, H, W), and logits (N, 4(n+1), H, W) of the distances to
            left, top, right and bottom; float32 also under autocast.
        """
        return self.predict(
            [self.cls_tower(x) for x in features], [self.box_tower(x) for x in features]
        )

    def predict(
        self, cls_maps: list[Tensor], box_maps: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The same from what the towers returned."""
        logits = [self.cls_score(x).float() for x in cls_maps]
        distributions = [
            scale * self.box_distribution(x).float() for x, scale in zip(box_maps, self.scales)
        ]
        return logits, distributions


def _tower(channels: int, num_convs: int, norm) -> nn.Sequential:
    layers = []
    for _ in range(num_convs):
        norm_layer = get_norm(norm, channels)
        layers.append(Conv2d(channels, channels, 3, padding=1, bias=not norm, norm=norm_layer))
        # A module of its own, as in RetinaNet's head, shows what comes before it.
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
