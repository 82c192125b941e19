"""Pair-wise distillation against its formula over all pairs of locations, float64."""

import numpy as np
import pytest
import torch
from helpers.toy import as_batch, build, context, maps, rand, random_weights

from aid_d2.distillers.pairwise import Pairwise, pairwise_loss

SIZES = {8: (6, 8), 16: (5, 3), 32: (1, 3), 64: (1, 1)}


def make(channels=(4, 4), **changes):
    return build(Pairwise, context(SIZES, channels), **changes)


def run(method, student, teacher, weights):
    return method(as_batch(student, teacher, weights))["similarity"]


def pool(x, reduce):
    """2x2 windows, or what the map has; those that do not fit are left out."""
    window = [min(2, size) for size in x.shape[2:]]
    rows, columns = (size // k for size, k in zip(x.shape[2:], window))
    x = x[:, :, : rows * window[0], : columns * window[1]]
    return reduce(x.reshape(*x.shape[:2], rows, window[0], columns, window[1]), (3, 5))


def all_pairs(teacher, student, weight):
    """One pair of nodes at a time."""
    images, nodes = len(teacher), teacher[0, 0].size
    total = 0.0
    for n in range(images):
        t, s = (x[n].reshape(x.shape[1], nodes) for x in (teacher, student))
        w = weight[n].reshape(nodes)
        for i in range(nodes):
            for j in range(nodes):
                similarity = [
                    x[:, i] @ x[:, j] / np.sqrt((x[:, i] @ x[:, i]) * (x[:, j] @ x[:, j]))
                    for x in (t, s)
                ]
                total += np.sqrt(w[i] * w[j]) * (similarity[0] - similarity[1]) ** 2
    return total / nodes**2 / images


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
def test_loss_against_all_pairs(channels):
    student, teacher = maps(SIZES, channels[0], seed=1), maps(SIZES, channels[1], seed=2)
    weights = random_weights(teacher)
    expected = sum(
        all_pairs(
            pool(teacher[s].numpy(), np.max),
            pool(student[s].numpy(), np.max),
            pool(weights.maps[s].numpy(), np.mean),
        )
        for s in SIZES
    )
    # The published weight is .5.
    loss = run(make(channels), student, teacher, weights)
    assert loss.item() == pytest.approx(0.5 * expected, rel=1e-10)


def test_weight_scales_the_loss():
    student, teacher = maps(SIZES, 4, seed=1), maps(SIZES, 4, seed=2)
    weights = random_weights(teacher)
    published, doubled = (run(m, student, teacher, weights) for m in (make(), make(WEIGHT=1.0)))
    assert doubled.item() == pytest.approx(2 * published.item(), rel=1e-12)


def test_gradient():
    t, weight = rand(2, 3, 2, 3, seed=1), rand(2, 1, 2, 3, seed=2).sigmoid()
    s = rand(2, 4, 2, 3, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pairwise_loss(x, t, weight), s)


@pytest.mark.parametrize("noise", [1.0, 1e-1, 1e-2, 1e-3])
def test_single_precision_maps_of_a_student_near_its_teacher(noise):
    """The vectors have much in common, so that all similarities are near 1, and their squares
    cancel to 1e-10 of themselves.
    """
    t = (rand(1, 64, 15, 20, seed=1) + 3 * rand(1, 64, 1, 1, seed=2)).float()
    s = t + noise * rand(1, 64, 15, 20, seed=3).float()
    weight = rand(1, 1, 15, 20, seed=4).sigmoid().float()

    x = s.double().requires_grad_()
    a, b = (y / y.square().sum(0).sqrt() for y in (t[0].double().flatten(1), x[0].flatten(1)))
    w = weight[0].double().flatten()
    difference = (a.T @ a - b.T @ b) ** 2 * (w[:, None] * w[None, :]).sqrt()
    expected = difference.mean()
    expected.backward()

    s.requires_grad_()
    loss = pairwise_loss(s, t, weight)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    error = (s.grad - x.grad).norm() / x.grad.norm()
    assert error < 1e-4


def test_no_matrix_of_locations_is_kept():
    """At p2 of 800x1344 it would have 2.8e8 entries for an image."""
    t, s = rand(1, 3, 100, 168, seed=1), rand(1, 3, 100, 168, seed=2).requires_grad_()
    sizes = []

    def pack(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        pairwise_loss(s, t, torch.ones(1, 1, 100, 168))
    assert sizes and max(sizes) <= s.numel()


def test_full_weight_is_the_formula_bit_for_bit():
    t, s = rand(2, 3, 5, 7, seed=1), rand(2, 3, 5, 7, seed=2)
    a, b = ((x / x.norm(dim=1, keepdim=True)).flatten(2) for x in (t, s))
    products = [(x @ y.mT).square().sum((1, 2)) for x, y in ((a, a), (b, b), (a, b))]
    expected = ((products[0] + products[1] - 2 * products[2]) / 35**2).mean()
    window = torch.nn.functional.avg_pool2d(torch.ones(2, 1, 10, 14), 2)
    assert torch.equal(pairwise_loss(s, t, window), expected)


def test_a_location_without_activation():
    t, s = rand(1, 3, 4, 4, seed=1).float(), rand(1, 3, 4, 4, seed=2).float()
    s[:, :, 1, 2] = 0
    s.requires_grad_()
    loss = pairwise_loss(s, t, torch.ones(1, 1, 4, 4))
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    t, s = rand(2, 3, 5, 7, seed=1).to(dtype), rand(2, 3, 5, 7, seed=2).to(dtype)
    weight = torch.full((2, 1, 5, 7), 0.5, dtype=dtype)
    loss = pairwise_loss(s, t, weight)
    expected = all_pairs(*(x.double().numpy() for x in (t, s, weight)))
    assert loss.dtype == dtype and loss.item() == pytest.approx(expected, rel=1e-2)


def test_needs_no_parameters():
    assert not list(make((3, 5)).parameters())
