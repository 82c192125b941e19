"""How norms over a whole batch are made independent of its size."""

import math

from torch import Tensor


def reference_ratio(x: Tensor, stride: int) -> float:
    """How many times more images x locations a map has than that of 2 images of 800x1333.

    Args:
        x: (N, C, H, W).
        stride: of the level; images are padded to a multiple of 32, to 800x1344.
    """
    reference = 2 * math.ceil(800 / stride) * math.ceil(1344 / stride)
    return x[:, 0].numel() / reference
