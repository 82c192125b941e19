"""Formulas of losses in plain Python and NumPy, float64, and random boxes to try them on."""

import math

import numpy as np
import torch

from helpers.toy import rand


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def log_sigmoid(z):
    return -math.log1p(math.exp(-z)) if z >= 0 else z - math.log1p(math.exp(z))


def reference_quality(logits, targets):
    """One anchor: logits and targets (K,)."""
    total = 0.0
    for z, t in zip(logits, targets):
        p, q = sigmoid(z), sigmoid(t)
        total += abs(p - q) * -(q * log_sigmoid(z) + (1 - q) * log_sigmoid(-z))
    return total


def overlap(a, b):
    """Intersection, union and enclosing area of two boxes."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height, area - width * height, hull


def reference_giou(a, b):
    intersection, union, hull = overlap(a, b)
    return 1 - intersection / union + (hull - union) / hull


def reference_iou(a, b):
    intersection, union, _ = overlap(a, b)
    return -math.log((intersection + 1) / (union + 1))


def reference_divergence(logits, targets):
    """One anchor: (4(n+1),), mean of the sides' KL(q || p)."""
    total = 0.0
    for z, t in zip(logits.reshape(4, -1), targets.reshape(4, -1)):
        log_p, log_q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (z, t))
        total += (np.exp(log_q) * (log_q - log_p)).sum()
    return total / 4


def boxes(*shape, seed):
    """Random boxes of 5 to 40 pixels."""
    low = 30 * rand(*shape, 2, seed=seed)
    return torch.cat([low, low + 5 + 35 * rand(*shape, 2, seed=seed + 1).sigmoid()], dim=-1)


class Corners:
    """A box transform whose regression is the box."""

    @staticmethod
    def apply_deltas(deltas, anchors):
        return deltas
