"""PKD against Pearson's correlation in NumPy, float64."""

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

from aid_d2.distillers.pkd import PKD, correlation_loss

SIZES = {8: (5, 6), 16: (3, 3), 32: (1, 2), 64: (1, 1)}
# Weight on each level (released configs).
PUBLISHED = {"RetinaNet": 10.0, "FCOS": 10.0, "GFL": 10.0, "GeneralizedRCNN": 6.0}


def make(channels=(4, 4), detector="RetinaNet", sizes=SIZES):
    return build(PKD, context(sizes, channels, detector))


def run(method, student, teacher, weights):
    return method(as_batch(student, teacher, weights))["feature"]


def numpy_standardize(x, weight):
    result = np.empty_like(x)
    w = weight.reshape(-1)
    for c in range(x.shape[1]):
        values = x[:, c].reshape(-1)
        mean = sum(w * values) / sum(w)
        deviation = np.sqrt(sum(w * (values - mean) ** 2) / sum(w))
        result[:, c] = (x[:, c] - mean) / (deviation + 1e-6)
    return result


def numpy_conv1(x, conv):
    weight, bias = conv.weight.detach().numpy()[:, :, 0, 0], conv.bias.detach().numpy()
    return np.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("detector", PUBLISHED)
def test_loss_against_numpy(detector, channels):
    student, teacher = maps(SIZES, channels[0], seed=1), maps(SIZES, channels[1], seed=2)
    weights = random_weights(teacher)
    method = shake(make(channels, detector))
    expected = 0.0
    for stride in SIZES:
        s, t = student[stride].numpy(), teacher[stride].numpy()
        if channels[0] != channels[1]:
            s = numpy_conv1(s, method.adapters[stride])
        weight = weights.maps[stride].numpy()
        difference = numpy_standardize(t, weight) - numpy_standardize(s, weight)
        expected += np.mean(weight * difference**2) / 2
    loss = run(method, student, teacher, weights)
    assert loss.item() == pytest.approx(PUBLISHED[detector] * expected, rel=1e-9)


def test_loss_is_one_minus_pearson():
    t, s = rand(2, 5, 6, 7, seed=1), rand(2, 5, 6, 7, seed=2)
    correlation = [
        np.corrcoef(t[:, c].numpy().ravel(), s[:, c].numpy().ravel())[0, 1] for c in range(5)
    ]
    loss = correlation_loss(s, t, torch.ones(2, 1, 6, 7))
    # Up to the 1e-6 beside the deviation.
    assert loss.item() == pytest.approx(1 - np.mean(correlation), rel=1e-5)


def test_loss_is_the_mean_weight_times_one_minus_the_weighted_pearson():
    t, s = rand(2, 5, 6, 7, seed=1), rand(2, 5, 6, 7, seed=2)
    weight = rand(2, 1, 6, 7, seed=3).sigmoid()
    distances = []
    for c in range(5):
        values = [x[:, c].numpy().ravel() for x in (t, s)]
        cov = np.cov(*values, aweights=weight.numpy().ravel(), ddof=0)
        distances.append(1 - cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]))
    expected = weight.mean().item() * np.mean(distances)
    assert correlation_loss(s, t, weight).item() == pytest.approx(expected, rel=1e-5)


def test_a_location_of_no_weight_is_left_alone():
    t, s = rand(2, 3, 4, 5, seed=1), rand(2, 3, 4, 5, seed=2).requires_grad_()
    weight = torch.ones(2, 1, 4, 5).double()
    weight[:, :, :2] = 1e-30
    correlation_loss(s, t, weight).backward()
    assert s.grad[:, :, :2].abs().max() < 1e-20 < 1e-4 < s.grad[:, :, 2:].abs().max()


def test_mean_and_scale_of_the_student_do_not_matter():
    teacher = maps({8: (5, 6)}, 4)
    student = {8: 30 * teacher[8] - 7}
    loss = run(make(sizes=[8]), student, teacher, constant_weights(teacher))
    assert loss.item() == pytest.approx(0, abs=1e-10)


def test_gradient_flows_through_the_statistics():
    t, weight = rand(2, 2, 2, 3, seed=1), rand(2, 1, 2, 3, seed=2).sigmoid()
    s = rand(2, 2, 2, 3, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: correlation_loss(x, t, weight), s)


def test_constant_channels():
    """In the student, in the teacher and in both, single precision."""
    t, s = rand(2, 4, 5, 6, seed=1).float(), rand(2, 4, 5, 6, seed=2).float()
    s[:, 0], t[:, 1], s[:, 2], t[:, 2] = 0.1, 1e4, -3.0, 5.0
    s.requires_grad_()
    weight = torch.ones(2, 1, 5, 6)
    loss = correlation_loss(s, t, weight)
    loss.backward()
    # A constant channel has no correlation and half the loss of one without any; two have none.
    varying = correlation_loss(s[:, 3:], t[:, 3:], weight).item()
    assert loss.item() == pytest.approx((0.5 + 0.5 + 0 + varying) / 4, rel=1e-3)
    assert s.grad.isfinite().all() and (s.grad[:, 2] == 0).all()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 2)])
def test_tiny_maps(images, size):
    sizes = {128: size}
    student = {128: rand(images, 4, *size, seed=1).float().requires_grad_()}
    teacher = {128: rand(images, 4, *size, seed=2).float()}
    loss = run(make(sizes=sizes), student, teacher, constant_weights(teacher))
    loss.backward()
    assert loss.isfinite() and student[128].grad.isfinite().all()
    # A single value per channel has nothing to correlate.
    assert (loss == 0) == (images * size[0] * size[1] == 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    t, s = rand(2, 3, 5, 7, seed=1).to(dtype), rand(2, 3, 5, 7, seed=2).to(dtype)
    t[:, 0] = 2.0
    weight = torch.full((2, 1, 5, 7), 0.5, dtype=dtype)
    loss = correlation_loss(s, t, weight)
    t, s, weight = (x.double().numpy() for x in (t, s, weight))
    difference = numpy_standardize(t, weight) - numpy_standardize(s, weight)
    assert loss.item() == pytest.approx(np.mean(0.5 * difference**2) / 2, rel=2e-2)


def test_adapters():
    assert not list(make((4, 4)).parameters())
    sizes = {8: (5, 6), 16: (3, 3)}
    method = make((3, 5), sizes=sizes)
    student, teacher = maps(sizes, 3, seed=1), maps(sizes, 5, seed=2)
    run(method, student, teacher, random_weights(teacher)).backward()
    assert {name for name, _ in method.named_parameters()} == {
        f"adapters.{stride}.{kind}" for stride in sizes for kind in ("weight", "bias")
    }
    # The mean does not matter, and so neither does the bias.
    assert all(a.weight.grad.abs().sum() > 0 for a in method.adapters.children())
    assert all(a.bias.grad is not None for a in method.adapters.children())
