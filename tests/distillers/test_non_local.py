"""Non-local distillation against the all-pairs form of its papers, float64."""

import copy

import numpy as np
import pytest
import torch
from helpers.toy import (
    as_batch,
    build,
    constant_weights,
    context,
    maps,
    rand,
    random_weights,
    shake,
)
from torch import nn

from aid_d2.distillers.non_local import NonLocal, NonLocalBlock, non_local
from aid_d2.structures import DetectorOutputs, DistillWeights

REFERENCE_SIZES = {4: (200, 336), 8: (100, 168), 16: (50, 84), 32: (25, 42), 64: (13, 21)}
PUBLISHED = {False: 4.9e-4, True: 4e-5}


def make(sizes, channels=(4, 4), two_stage=False, NORMALIZE=False, **changes):
    """With the published norms, unless NORMALIZE."""
    detector = "GeneralizedRCNN" if two_stage else "RetinaNet"
    return build(NonLocal, context(sizes, channels, detector), NORMALIZE=NORMALIZE, **changes)


def all_pairs(theta, phi, g):
    """y_i = 1/K sum_j (theta_i . phi_j) g_j, one location at a time."""
    images, channels, h, w = theta.shape
    query = theta.reshape(images, channels, -1)
    key, value = (x.reshape(images, channels, -1) for x in (phi, g))
    y = np.zeros_like(query)
    for n in range(images):
        for i in range(h * w):
            for j in range(key.shape[2]):
                y[n, :, i] += (query[n, :, i] @ key[n, :, j]) * value[n, :, j]
    return y.reshape(images, channels, h, w) / key.shape[2]


def conv1(x, conv):
    weight = conv.weight.detach().numpy()[:, :, 0, 0]
    bias = 0.0 if conv.bias is None else conv.bias.detach().numpy()[:, None, None]
    return np.einsum("oc,nchw->nohw", weight, x) + bias


def max_pool(x, window):
    """Windows that do not fit are left out."""
    rows, columns = (size // k for size, k in zip(x.shape[2:], window))
    x = x[:, :, : rows * window[0], : columns * window[1]]
    return x.reshape(*x.shape[:2], rows, window[0], columns, window[1]).max((3, 5))


def numpy_block(x, block, pool):
    window = tuple(min(pool, size) for size in x.shape[2:])
    theta, phi, g = np.split(conv1(x, block.project), 3, axis=1)
    y = conv1(all_pairs(theta, max_pool(phi, window), max_pool(g, window)), block.out)
    mean, var = y.mean((0, 2, 3), keepdims=True), y.var((0, 2, 3), keepdims=True)
    gamma, beta = (p.detach().numpy()[:, None, None] for p in (block.norm.weight, block.norm.bias))
    return x + gamma * (y - mean) / np.sqrt(var + 1e-5) + beta


def test_associative_form_equals_all_pairs():
    theta, phi, g = rand(2, 3, 4, 5, seed=1), rand(2, 3, 2, 2, seed=2), rand(2, 3, 2, 2, seed=3)
    expected = all_pairs(theta.numpy(), phi.numpy(), g.numpy())
    np.testing.assert_allclose(non_local(theta, phi, g).numpy(), expected, rtol=1e-12)


def test_gradients_equal_those_of_all_pairs():
    inputs = [rand(2, 3, 4, 5, seed=1), rand(2, 3, 2, 2, seed=2), rand(2, 3, 2, 2, seed=3)]
    inputs = [x.requires_grad_() for x in inputs]
    upstream = rand(2, 3, 4, 5, seed=4)
    actual = torch.autograd.grad((non_local(*inputs) * upstream).sum(), inputs)

    theta, phi, g = (x.flatten(2) for x in inputs)
    pairs = torch.einsum("nci,ncj->nij", theta, phi) / phi.shape[2]
    y = torch.einsum("nij,ncj->nci", pairs, g).view_as(upstream)
    expected = torch.autograd.grad((y * upstream).sum(), inputs)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(non_local, inputs)


@pytest.mark.parametrize("size,pool", [((6, 8), 2), ((7, 5), 2), ((8, 8), 8), ((1, 3), 4)])
def test_block_against_numpy(size, pool):
    block = shake(NonLocalBlock(5, 3, pool).double())
    x = rand(2, 5, *size)
    np.testing.assert_allclose(
        block(x).detach().numpy(), numpy_block(x.numpy(), block, pool), rtol=1e-9
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_map_of_two_cells_gives_a_finite_result(seed):
    """Its values vary in one direction alone, where a variance can be rounded below zero."""
    torch.manual_seed(seed)
    block = shake(NonLocalBlock(256, 128, 2))
    x = 4 * torch.randn(1, 256, 1, 2)
    expected = copy.deepcopy(block).double()(x.double())
    torch.testing.assert_close(block(x).double(), expected, rtol=1e-2, atol=1e-2)


def test_block_under_autocast():
    """Near the exact one, which it would not be with a covariance in half precision."""
    torch.manual_seed(0)
    block = NonLocalBlock(256, 64, 8)
    nn.init.ones_(block.norm.weight)
    x = torch.randn(2, 256, 40, 40) / 2
    exact = copy.deepcopy(block).double()(x.double()) - x
    with torch.autocast("cpu", torch.bfloat16):
        fast = block(x).double() - x
    assert (fast - exact).norm() < 0.1 * exact.norm()


def test_block_starts_as_the_identity():
    x = rand(2, 5, 6, 8)
    assert torch.equal(NonLocalBlock(5, 3, 2).double()(x), x)


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("two_stage", [False, True])
def test_loss_against_numpy(two_stage, channels):
    sizes = {4: (9, 12), 8: (5, 6), 16: (3, 3), 32: (1, 2), 64: (1, 1)}
    student, teacher = maps(sizes, channels[0], seed=1), maps(sizes, channels[1], seed=2)
    weights = random_weights(teacher)
    method = shake(make(sizes, channels, two_stage))
    losses = method(as_batch(student, teacher, weights))
    expected = 0.0
    # (inner channels, pooling), finest level first.
    published = [(64, 8), (64, 4), (128, 2), (128, 2), (128, 2)]
    for stride, (inner, pool) in zip(sizes, published):
        key = stride
        assert method.student_blocks[key].out.in_channels == inner
        target = numpy_block(teacher[stride].numpy(), method.teacher_blocks[key], pool)
        mine = numpy_block(student[stride].numpy(), method.student_blocks[key], pool)
        difference = target - conv1(mine, method.adapters[key])
        expected += np.sqrt(np.sum((weights.maps[stride].numpy() * difference) ** 2))
    assert set(losses) == {"relation"}
    assert losses["relation"].item() == pytest.approx(PUBLISHED[two_stage] * expected, rel=1e-9)


@pytest.mark.parametrize("weight", [0.3, 1e-3])
def test_constant_weight_scales_the_loss(weight):
    sizes = {8: (5, 6), 16: (3, 3)}
    student, teacher = (
        DetectorOutputs(maps(sizes, 4, seed=1)),
        DetectorOutputs(maps(sizes, 4, seed=2)),
    )
    method = shake(make(sizes))
    full = method(as_batch(student, teacher, constant_weights(teacher.features)))["relation"]
    weighted = method(as_batch(student, teacher, constant_weights(teacher.features, weight)))[
        "relation"
    ]
    assert weighted.item() == pytest.approx(weight * full.item(), rel=1e-12)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    sizes = {8: (5, 6), 16: (3, 3)}
    teacher = {s: x.float() for s, x in maps(sizes, 4).items()}
    student = {s: x.clone().requires_grad_() for s, x in teacher.items()}
    method = make(sizes).float()
    loss = method(as_batch(student, teacher, random_weights(teacher)))["relation"]
    loss.backward()
    assert loss.item() == 0
    for x in [*student.values(), *method.parameters()]:
        assert (x.grad == 0).all()


def test_detached_teacher_keeps_its_block():
    sizes = {8: (5, 6)}
    method = make(sizes, DETACH_TEACHER=True)
    student, teacher = (
        DetectorOutputs(maps(sizes, 4, seed=1)),
        DetectorOutputs(maps(sizes, 4, seed=2)),
    )
    method(as_batch(student, teacher, constant_weights(teacher.features)))["relation"].backward()
    assert all(p.grad is None for p in method.teacher_blocks.parameters())
    assert all(p.grad is not None for p in method.student_blocks.parameters())
    assert torch.equal(method.teacher_blocks[8](teacher.features[8]), teacher.features[8])


def test_every_parameter_has_a_gradient_although_the_blocks_start_as_the_identity():
    sizes = {8: (5, 6), 16: (1, 1)}
    method = make(sizes, (3, 5))
    student, teacher = (
        DetectorOutputs(maps(sizes, 3, seed=1)),
        DetectorOutputs(maps(sizes, 5, seed=2)),
    )
    method(as_batch(student, teacher, constant_weights(teacher.features)))["relation"].backward()
    assert all(p.grad is not None for p in method.parameters())
    for blocks in (method.student_blocks, method.teacher_blocks):
        # From zero gamma and beta the block starts to learn through these.
        assert blocks[8].norm.weight.grad.abs().sum() > 0


def test_normalized_loss_equals_the_published_one_at_two_images_of_800x1333():
    channels = (2, 2)
    student = DetectorOutputs(maps(REFERENCE_SIZES, 2, seed=1))
    teacher = DetectorOutputs(maps(REFERENCE_SIZES, 2, seed=2))
    weights = constant_weights(teacher.features)
    small = {"INNER_CHANNELS": (2,) * 5}
    plain = make(REFERENCE_SIZES, channels, **small)(as_batch(student, teacher, weights))
    normalized = make(REFERENCE_SIZES, channels, NORMALIZE=True, **small)(
        as_batch(student, teacher, weights)
    )
    assert normalized["relation"].item() == pytest.approx(plain["relation"].item(), rel=1e-12)


@pytest.mark.parametrize("normalize,factor", [(True, 1.0), (False, 2.0**0.5)])
def test_how_the_loss_grows_with_the_batch(normalize, factor):
    sizes = {8: (5, 6), 16: (3, 3)}
    student, teacher = maps(sizes, 4, seed=1), maps(sizes, 4, seed=2)
    weights = random_weights(teacher)
    method = shake(make(sizes, NORMALIZE=normalize))
    once = method(as_batch(student, teacher, weights))["relation"]
    repeated = [
        {s: x.repeat(2, 1, 1, 1) for s, x in y.items()} for y in (student, teacher, weights.maps)
    ]
    twice = method(as_batch(repeated[0], repeated[1], DistillWeights(repeated[2])))
    assert twice["relation"].item() == pytest.approx(factor * once.item(), rel=1e-9)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1)])
def test_tiny_maps(images, size):
    """The top of a pyramid on a small image can be a single cell, on one image per GPU too."""
    sizes = {128: size}
    method = shake(make(sizes))
    student = {128: rand(images, 4, *size, seed=1).requires_grad_()}
    teacher = maps(sizes, 4, images=images, seed=2)
    loss = method(as_batch(student, teacher, constant_weights(teacher)))["relation"]
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert student[128].grad.isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1e-20, 65504.0])
def test_extreme_maps_give_a_finite_loss_and_gradients(scale):
    sizes = {8: (5, 6)}
    student = {8: (scale * rand(2, 4, 5, 6, seed=1)).float().requires_grad_()}
    teacher = {8: (-scale * rand(2, 4, 5, 6, seed=2)).float()}
    method = shake(make(sizes)).float()
    loss = method(as_batch(student, teacher, constant_weights(teacher)))["relation"]
    loss.backward()
    assert loss.isfinite() and student[8].grad.isfinite().all()


def test_too_few_constants_for_the_levels_are_named():
    with pytest.raises(ValueError, match="INNER_CHANNELS and POOL.*2 levels"):
        make({8: (5, 6), 16: (3, 3)}, POOL=(8,))
