"""Weighted distances of two maps over a whole batch, and what its size does to them."""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def squared_error(student: Tensor, teacher: Tensor, *weights: Tensor) -> Tensor:
    """``sum w1 w2 ... (T - S)^2`` over all elements.

    Args:
        student, teacher: S and T, of one shape.
        weights: each of a shape that broadcasts to it.

    Returns:
        ()
    """
    return (math.prod(weights) * (teacher - student).square()).sum()


def mean_squared_error(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """``mean w (T - S)^2`` over all elements; arguments as of :func:`squared_error`."""
    return (weight * (teacher - student).square()).mean()


def weighted_distance(student: Tensor, teacher: Tensor, *weights: Tensor) -> Tensor:
    """``|| w1 w2 ... (S - T) ||_2`` over all elements.

    Args:
        student, teacher: S and T, of one shape. It is computed in the student's type.
        weights: each of a shape that broadcasts to it; constants.

    Returns:
        (), in float32 at least; its gradient is 0 where the distance is.
    """
    return _WeightedDistance.apply(student, teacher, *weights)


class _WeightedDistance(torch.autograd.Function):
    """Autograd's own way takes a new map for every factor, forward and backward, and on a CPU new
    memory costs ten times what the factor does.
    """

    @staticmethod
    def forward(ctx, student, teacher, *weights):
        # All of one type: an operation of two types takes a new map in the larger one.
        difference = student - teacher.to(student.dtype)
        weights = [weight.to(student.dtype) for weight in weights]
        for weight in weights:
            difference.mul_(weight)
        distance = torch.linalg.vector_norm(difference)
        ctx.save_for_backward(difference, distance, *weights)
        return distance.to(torch.promote_types(distance.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        difference, distance, *weights = ctx.saved_tensors
        scale = torch.where(distance == 0, 0.0, gradient / distance)
        gradient = difference * scale
        for weight in weights:
            gradient.mul_(weight)
        to_teacher = -gradient if ctx.needs_input_grad[1] else None
        return (gradient, to_teacher, *(None for _ in weights))


def reference_ratio(x: Tensor, stride: int) -> float:
    """How many times more images x locations a map has than that of 2 images of 800x1333.

    Args:
        x: (N, C, H, W).
        stride: of the level; images are padded to a multiple of 32, to 800x1344.
    """
    reference = 2 * math.ceil(800 / stride) * math.ceil(1344 / stride)
    return x[:, 0].numel() / reference
