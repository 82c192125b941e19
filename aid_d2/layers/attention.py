"""Where a map is active, and in which channels (Zhang & Ma, ICLR 2021)."""

from typing import NamedTuple

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


class Attention(NamedTuple):
    """Both attentions of a map.

    Attributes:
        space: As (N, 1, H, W).
        channels: Ac (N, C, 1, 1).
    """

    space: Tensor
    channels: Tensor

    @property
    def both(self) -> Tensor:
        """A = As Ac (N, C, H, W)."""
        return self.space * self.channels


def attentions(x: Tensor, temperature: float) -> Attention:
    """As and Ac of a map (N, C, H, W) with signs."""
    magnitude = x.abs()
    return Attention(
        spatial_attention(magnitude, temperature), channel_attention(magnitude, temperature)
    )


def attention_loss(
    student: Attention, teacher: Attention, weight: Tensor, pooled: Tensor
) -> Tensor:
    """``1/N [sum w |Ac_s - Ac_t| + sum W |As_s - As_t|]`` (FGD, Yang et al., eq. 9, and GKD).

    Args:
        student, teacher: of maps of equal shape.
        weight: W of AID (N, 1, H, W).
        pooled: w, one weight per image (N, 1).
    """
    channels = pooled[:, :, None, None] * (student.channels - teacher.channels).abs()
    space = weight * (student.space - teacher.space).abs()
    return (channels.sum() + space.sum()) / len(weight)
