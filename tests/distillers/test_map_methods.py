"""What holds for every method that compares the maps themselves."""

import pytest
from helpers.toy import as_batch, build, constant_weights, context, maps, random_weights, shake

from aid_d2.distillers import DISTILLER_REGISTRY

# The masks of MGD depend on the iteration.
pytestmark = pytest.mark.usefixtures("storage")

METHODS = ("Hint", "Pairwise", "PKD", "MGD", "CWD")
SIZES = {8: (6, 9), 16: (3, 5), 32: (2, 3), 64: (1, 2), 128: (1, 1)}


def make(name, sizes=SIZES):
    return build(DISTILLER_REGISTRY.get(name), context(sizes))


def run(method, student, teacher, weights):
    """The one loss of the method."""
    (loss,) = method(as_batch(student, teacher, weights)).values()
    return loss


@pytest.mark.parametrize("weight", [0.3, 1e-3])
@pytest.mark.parametrize("name", METHODS)
def test_constant_weight_scales_the_loss(name, weight):
    student, teacher = maps(SIZES, 4, seed=1), maps(SIZES, 4, seed=2)
    full, weighted = (
        run(shake(make(name)), student, teacher, constant_weights(teacher, w))
        for w in (1.0, weight)
    )
    assert full > 0
    assert weighted.item() == pytest.approx(weight * full.item(), rel=1e-10)


# What MGD generates starts from random layers.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "MGD"])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(name):
    teacher = {s: x.float() for s, x in maps(SIZES, 4).items()}
    student = {s: x.clone().requires_grad_() for s, x in teacher.items()}
    method = make(name).float()
    loss = run(method, student, teacher, random_weights(teacher))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    for x in [*student.values(), *method.parameters()]:
        assert x.grad.abs().max() < 1e-7


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4, 65504.0])
@pytest.mark.parametrize("name", METHODS)
def test_extreme_maps_give_a_finite_loss_and_gradients(name, scale):
    student = {s: (scale * x).float().requires_grad_() for s, x in maps(SIZES, 4, seed=1).items()}
    teacher = {s: (-scale * x).float() for s, x in maps(SIZES, 4, seed=2).items()}
    method = make(name).float()
    loss = run(method, student, teacher, constant_weights(teacher, 1e-35))
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert all(x.grad.isfinite().all() for x in [*student.values(), *method.parameters()])
