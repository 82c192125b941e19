"""The weighted distance against autograd's own way, float64."""

import torch
from helpers.toy import rand

from aid_d2.layers.norms import weighted_distance


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
