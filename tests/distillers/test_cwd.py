"""Channel-wise distillation against its formula in NumPy, float64."""

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

from aid_d2.distillers.cwd import CWD, channel_divergence

SIZES = {8: (5, 6), 16: (3, 3), 32: (1, 2), 64: (1, 1)}


def make(channels=(4, 4), sizes=SIZES, **changes):
    return build(CWD, context(sizes, channels), **changes)


def run(method, student, teacher, weights):
    return method(as_batch(student, teacher, weights))["channel"]


def distribution(values, temperature):
    e = np.exp((values - values.max()) / temperature)
    return e / e.sum()


def numpy_divergence(teacher, student, weight, temperature):
    """One channel of one image at a time; KL divergence where the weight is constant."""
    images, channels = teacher.shape[:2]
    total = 0.0
    for n in range(images):
        w = weight[n].ravel()
        for c in range(channels):
            p = distribution(teacher[n, c].ravel(), temperature)
            q = distribution(student[n, c].ravel(), temperature)
            terms = p * np.log(p / q)
            if not np.allclose(w, w[0], rtol=1e-12):
                terms = terms - p + q
            total += np.sum(w * terms)
    return temperature**2 * total / (images * channels)


def numpy_conv1(x, conv):
    weight, bias = conv.weight.detach().numpy()[:, :, 0, 0], conv.bias.detach().numpy()
    return np.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
def test_loss_against_numpy(channels, temperature, constant):
    student, teacher = maps(SIZES, channels[0], seed=1), maps(SIZES, channels[1], seed=2)
    weights = constant_weights(teacher, 0.7) if constant else random_weights(teacher)
    method = shake(make(channels, TEMPERATURE=temperature))
    expected = 0.0
    for stride in SIZES:
        s, t = student[stride].numpy(), teacher[stride].numpy()
        if channels[0] != channels[1]:
            s = numpy_conv1(s, method.adapters[stride])
        expected += numpy_divergence(t, s, weights.maps[stride].numpy(), temperature)
    # The published weight is 5.
    loss = run(method, student, teacher, weights)
    assert loss.item() == pytest.approx(5 * expected, rel=1e-9)


def test_published_temperature_is_one():
    student, teacher = maps(SIZES, 4, seed=1), maps(SIZES, 4, seed=2)
    losses = [
        run(m, student, teacher, random_weights(teacher)) for m in (make(), make(TEMPERATURE=1.0))
    ]
    assert torch.equal(*losses)


def test_gradient():
    t, weight = rand(2, 2, 2, 3, seed=1), rand(2, 1, 2, 3, seed=2).sigmoid()
    s = rand(2, 2, 2, 3, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: channel_divergence(x, t, weight, 2.0), s)


def test_the_teacher_is_the_minimum_for_every_weight():
    """Also where the weights varies a student gains nothing by leaving its teacher."""
    t, weight = rand(1, 3, 4, 5, seed=1), rand(1, 1, 4, 5, seed=2).sigmoid()
    at_teacher = t.clone().requires_grad_()
    loss = channel_divergence(at_teacher, t, weight, 1.0)
    loss.backward()
    assert loss == 0 and at_teacher.grad.abs().max() < 1e-15
    for seed in range(20):
        assert channel_divergence(t + 0.1 * rand(1, 3, 4, 5, seed=seed), t, weight, 1.0) > 0


def test_full_weight_is_the_formula_bit_for_bit():
    t, s = rand(2, 3, 5, 7, seed=1).float(), rand(2, 3, 5, 7, seed=2).float()
    log_p, log_q = t.flatten(2).log_softmax(2), s.flatten(2).log_softmax(2)
    terms = log_p.exp() * (log_p - log_q) - log_p.exp() + log_q.exp()
    assert torch.equal(channel_divergence(s, t, torch.ones(2, 1, 5, 7), 1.0), terms.sum() / (2 * 3))


def test_saturated_channels_against_the_limit():
    """All mass of the teacher at the first location, of the student at the second."""
    t, s = torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3)
    t[..., 0], s[..., 1] = 1e4, 1e4
    loss = channel_divergence(s, t, torch.ones(1, 1, 1, 3), 1.0)
    assert loss.item() == pytest.approx(1e4, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    t, s = rand(2, 3, 5, 7, seed=1).to(dtype), rand(2, 3, 5, 7, seed=2).to(dtype)
    loss = channel_divergence(s, t, torch.full((2, 1, 5, 7), 0.5, dtype=dtype), 1.0)
    exact = channel_divergence(s.double(), t.double(), torch.full((2, 1, 5, 7), 0.5), 1.0)
    assert loss.item() == pytest.approx(exact.item(), rel=3e-2)


def test_adapters():
    assert not list(make((4, 4)).parameters())
    sizes = {8: (5, 6), 16: (3, 3)}
    method = make((3, 5), sizes)
    student, teacher = maps(sizes, 3, seed=1), maps(sizes, 5, seed=2)
    run(method, student, teacher, random_weights(teacher)).backward()
    # A softmax does not see a bias.
    assert all(a.weight.grad.abs().sum() > 0 for a in method.adapters.children())
    assert all(a.bias.grad is not None for a in method.adapters.children())
