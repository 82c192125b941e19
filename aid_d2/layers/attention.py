"""Where a map is active, and in which channels (Zhang & Ma, ICLR 2021)."""

from torch import Tensor


def spatial_attention(magnitude: Tensor, temperature: float) -> Tensor:
    """``H W softmax_hw(mean_c |x| / T)`` (Zhang & Ma, sec. 3.1).

    Args:
        magnitude: |x| (N, C, H, W).
        temperature: T.

    Returns:
        (N, 1, H, W), mean 1 over space.
    """
    energy = magnitude.mean(1).flatten(1) / temperature
    shape = (len(magnitude), 1, *magnitude.shape[-2:])
    return (energy.softmax(1) * energy.shape[1]).view(shape)


def channel_attention(magnitude: Tensor, temperature: float) -> Tensor:
    """``C softmax_c(mean_hw |x| / T)`` (Zhang & Ma, sec. 3.1).

    Args:
        magnitude: |x| (N, C, H, W).
        temperature: T.

    Returns:
        (N, C, 1, 1), mean 1 over channels.
    """
    energy = magnitude.mean((2, 3)) / temperature
    return (energy.softmax(1) * energy.shape[1])[:, :, None, None]
