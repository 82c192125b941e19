"""Layers that bring the student's maps to the teacher's shape."""

from torch import nn


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
