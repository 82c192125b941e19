"""Hint learning against its formula in NumPy, float64."""

import numpy as np
import pytest
from helpers.toy import as_batch, build, context, maps, random_weights, shake

from aid_d2.distillers.hint import Hint

SIZES = {8: (5, 6), 16: (3, 3), 32: (1, 2), 64: (1, 1)}


def make(channels=(4, 4), **changes):
    return build(Hint, context(SIZES, channels), **changes)


def run(method, student, teacher, weights):
    return method(as_batch(student, teacher, weights))["feature"]


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
def test_loss_against_numpy(channels):
    student, teacher = maps(SIZES, channels[0], seed=1), maps(SIZES, channels[1], seed=2)
    weights = random_weights(teacher)
    method = shake(make(channels))
    expected = 0.0
    for stride in SIZES:
        conv = method.adapters[stride]
        weight, bias = conv.weight.detach().numpy()[:, :, 0, 0], conv.bias.detach().numpy()
        adapted = np.einsum("oc,nchw->nohw", weight, student[stride].numpy())
        adapted = adapted + bias[:, None, None]
        difference = teacher[stride].numpy() - adapted
        expected += np.mean(weights.maps[stride].numpy() * difference**2)
    # The published weight is 1.
    assert run(method, student, teacher, weights).item() == pytest.approx(expected, rel=1e-12)


def test_weight_scales_the_loss():
    student, teacher = maps(SIZES, 4, seed=1), maps(SIZES, 4, seed=2)
    weights = random_weights(teacher)
    once, thrice = (run(make(WEIGHT=w), student, teacher, weights) for w in (1.0, 3.0))
    assert thrice.item() == pytest.approx(3 * once.item(), rel=1e-12)
