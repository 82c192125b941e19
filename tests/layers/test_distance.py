"""Weighted distances against the formulas, in float64, and autograd's own way."""

import pytest
import torch
from helpers.toy import rand

from aid_d2.layers.distance import mean_squared_error, squared_error, weighted_distance


def reference(student, teacher, *weights):
    difference = student - teacher
    for weight in weights:
        difference = difference * weight
    return difference.square().sum().sqrt()


def inputs():
    maps = [rand(2, 3, 4, 5, seed=i).requires_grad_() for i in (1, 2)]
    weights = [rand(2, 3, 1, 1, seed=3).abs(), rand(2, 1, 4, 5, seed=4).abs()]
    return maps, weights


def test_value_and_gradients():
    maps, weights = inputs()
    for factors in ([], weights[:1], weights):
        actual, expected = weighted_distance(*maps, *factors), reference(*maps, *factors)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
        for mine, theirs in zip(
            torch.autograd.grad(3 * actual, maps), torch.autograd.grad(3 * expected, maps)
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-15)


def test_finite_differences():
    maps, weights = inputs()
    assert torch.autograd.gradcheck(lambda s, t: weighted_distance(s, t, *weights), maps)


def test_inputs_stay_as_they_are():
    maps, weights = inputs()
    before = [x.detach().clone() for x in (*maps, *weights)]
    weighted_distance(*maps, *weights).backward()
    assert all(map(torch.equal, before, (*maps, *weights)))


def test_gradient_of_no_distance_is_zero():
    x = rand(2, 3, 4, 5).requires_grad_()
    distance = weighted_distance(x, x.detach().clone(), torch.ones(2, 1, 4, 5).double())
    distance.backward()
    assert distance.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def toy(dtype=torch.float64):
    """Two maps, AID's weight and a mask of cells."""
    s, t = (rand(2, 3, 5, 7, seed=i).to(dtype) for i in (1, 2))
    return s, t, rand(2, 1, 5, 7, seed=3).sigmoid().to(dtype), rand(2, 1, 5, 7, seed=4) > 0


@pytest.mark.parametrize(
    "dtype, rel", [(torch.float64, 1e-12), (torch.float16, 1e-2), (torch.bfloat16, 1e-2)]
)
def test_squared_errors_against_numpy(dtype, rel):
    inputs = toy(dtype)
    s, t, weight, mask = (x.double().numpy() for x in inputs)
    error = (t - s) ** 2
    summed = {2: error, 3: weight * error, 4: weight * mask * error}
    for count, expected in summed.items():
        actual = squared_error(*inputs[:2], *inputs[2:count])
        assert actual.item() == pytest.approx(expected.sum(), rel=rel)
    actual = mean_squared_error(*inputs[:3])
    assert actual.item() == pytest.approx((weight * error).mean(), rel=rel)


def test_full_weight_is_the_formula_bit_for_bit():
    s, t, weight, _ = toy(torch.float32)
    full = torch.ones_like(weight)
    assert torch.equal(squared_error(s, t, full), ((t - s) ** 2).sum())
    assert torch.equal(mean_squared_error(s, t, full), ((t - s) ** 2).mean())


def test_gradients_of_squared_errors():
    s, t, weight, mask = toy()
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: squared_error(x, t, weight, mask), s)
    assert torch.autograd.gradcheck(lambda x: mean_squared_error(x, t, weight), s)
