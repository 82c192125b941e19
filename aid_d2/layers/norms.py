"""Norms of the heads of dense detectors."""

import math

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups as published for 256 channels; narrower layers have fewer.

    A group has 8 channels at least, since a coarse level may be a single location, and a group of a
    single value would lose it. Groups are a power of two: of 88 channels there is one alone.
    """
    return nn.GroupNorm(math.gcd(32, channels, max(channels // 8, 1)), channels)
