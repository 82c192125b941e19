"""Which anchors count in a loss over all of them, and what it is divided by."""

import torch
from torch import Tensor

from ..distributed import mean_over_gpus
from ..losses import IGNORED, Objects


def counted_anchors(matched_idxs: Tensor, anchors: Tensor, objects: Objects) -> Tensor:
    """(N, R) bool: neither ignored by the detector's own assignment nor centred in the padding.

    Args:
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
        anchors: (R, 4) x1 y1 x2 y2, pixels.
        objects: ground truth of the N images.
    """
    return (matched_idxs != IGNORED) & centred_in_image(anchors, objects.image_sizes)


def count_positive(matched_idxs: Tensor) -> Tensor:
    """N_pos (): positive anchors of a GPU's images, the mean over GPUs, at least 1.

    Args:
        matched_idxs: (N, R) as in :class:`UnreducedLosses`.
    """
    return mean_over_gpus((matched_idxs >= 0).sum().float()).clamp(min=1)


def centred_in_image(anchors: Tensor, image_sizes: list[tuple[int, int]]) -> Tensor:
    """Which anchors have their centre in the image and not in its padding.

    Args:
        anchors: (R, 4) x1 y1 x2 y2, pixels.
        image_sizes: (height, width) of each of N images.

    Returns:
        (N, R) bool
    """
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    width_height = torch.tensor(image_sizes).to(anchors.device, non_blocking=True).flip(1)
    return (centres < width_height[:, None]).all(-1)
