"""Layers that bring the student's maps to the teacher's shape."""

from collections.abc import Callable, Iterable, Iterator

from torch import nn

from ..structures import LevelPair


class PerLevel(nn.Module):
    """A module for each level, found by the stride of the level.

    Args:
        pairs: the levels.
        build: makes the module of a level.
    """

    def __init__(self, pairs: Iterable[LevelPair], build: Callable[[LevelPair], nn.Module]):
        super().__init__()
        for pair in pairs:
            self.add_module(str(pair.stride), build(pair))

    def __getitem__(self, stride: int) -> nn.Module:
        return self.get_submodule(str(stride))

    def __iter__(self) -> Iterator[int]:
        return (int(name) for name, _ in self.named_children())


def identity_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """A convolution that keeps the size of its input, and starts as the identity where the numbers
    of channels agree: a student equal to its teacher then has no loss.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    if in_channels == out_channels:
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    return conv


def identity_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that starts as the identity where the numbers of features agree."""
    linear = nn.Linear(in_features, out_features)
    if in_features == out_features:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return linear


def level_adapters(pairs: Iterable[LevelPair], kernel_size: int) -> PerLevel:
    """An :func:`identity_conv` for each level."""
    return PerLevel(
        pairs, lambda x: identity_conv(x.student_channels, x.teacher_channels, kernel_size)
    )


def channel_adapter(in_channels: int, out_channels: int) -> nn.Module:
    """A 1x1 convolution where the numbers of channels differ; elsewhere nothing is trained and the
    student's map stays as it is.
    """
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


def channel_adapters(pairs: Iterable[LevelPair]) -> PerLevel:
    """A :func:`channel_adapter` for each level."""
    return PerLevel(pairs, lambda x: channel_adapter(x.student_channels, x.teacher_channels))
