"""MGD against its formula in NumPy, float64, and its random numbers."""

import numpy as np
import pytest
import torch
from helpers.toy import (
    as_batch,
    build,
    constant_weights,
    context,
    maps,
    random_weights,
    shake,
)

from aid_d2.distillers.mgd import MGD, random_mask
from detectron2.utils.events import EventStorage

pytestmark = pytest.mark.usefixtures("storage")

SIZES = {8: (6, 7), 16: (3, 3), 32: (1, 2), 64: (1, 1)}
# Weight and share of blanked locations (released configs).
PUBLISHED = {
    "RetinaNet": (2e-5, 0.65),
    "FCOS": (2e-5, 0.65),
    "GFL": (2e-5, 0.65),
    "GeneralizedRCNN": (5e-7, 0.45),
}


def make(channels=(4, 4), detector="RetinaNet", sizes=SIZES):
    torch.manual_seed(0)
    return build(MGD, context(sizes, channels, detector))


def run(method, student, teacher, weights):
    return method(as_batch(student, teacher, weights))["generation"]


def numpy_conv(x, conv):
    """Convolution with zero padding that keeps the size."""
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    k, (h, w) = weight.shape[2], x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    result = bias[:, None, None]
    for i in range(k):
        for j in range(k):
            cut = padded[:, :, i : i + h, j : j + w]
            result = result + np.einsum("oc,nchw->nohw", weight[:, :, i, j], cut)
    return result


def seen_by_generators(method):
    """Fills with the masked maps, by stride, when the method runs."""
    seen = {}
    for stride in method.generators:
        method.generators[stride].register_forward_pre_hook(
            lambda module, inputs, stride=stride: seen.update({stride: inputs[0].detach()})
        )
    return seen


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("detector", PUBLISHED)
def test_loss_against_numpy(detector, channels):
    student, teacher = maps(SIZES, channels[0], seed=1), maps(SIZES, channels[1], seed=2)
    weights = random_weights(teacher)
    method = shake(make(channels, detector))
    seen = seen_by_generators(method)
    loss = run(method, student, teacher, weights)
    expected = 0.0
    for stride in SIZES:
        key, s, t = stride, student[stride].numpy(), teacher[stride].numpy()
        if channels[0] != channels[1]:
            s = numpy_conv(s, method.adapters[key])
        kept = (seen[stride] != 0).all(1, keepdim=True).numpy()
        assert np.allclose(seen[stride].numpy(), kept * s, rtol=1e-12)
        first, _, second = method.generators[key]
        generated = numpy_conv(np.maximum(numpy_conv(kept * s, first), 0), second)
        expected += np.sum(weights.maps[stride].numpy() * (t - generated) ** 2) / len(t)
    assert loss.item() == pytest.approx(PUBLISHED[detector][0] * expected, rel=1e-10)


@pytest.mark.parametrize("detector", PUBLISHED)
def test_share_of_blanked_locations(detector):
    sizes = {8: (100, 168)}
    method = make((1, 1), detector, sizes)
    seen = seen_by_generators(method)
    student = {8: torch.ones(2, 1, 100, 168, dtype=torch.float64)}
    run(method, student, student, constant_weights(student))
    # The mean of 33600 draws deviates by .003.
    blank = (seen[8] == 0).double().mean().item()
    assert blank == pytest.approx(PUBLISHED[detector][1], abs=0.015)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_mask_at_the_ends(ratio):
    mask = random_mask((2, 1, 50, 50), ratio, torch.Generator().manual_seed(0))
    assert (mask == (ratio == 0)).all()


def masks_of(method, steps):
    student = {s: torch.ones_like(x) for s, x in maps(SIZES, 4).items()}
    seen, result = seen_by_generators(method), []
    for iteration in range(steps):
        with EventStorage(iteration):
            run(method, student, student, constant_weights(student))
        result.append(seen[8] != 0)
    return result


def test_masks_are_drawn_anew_and_depend_on_the_seed_of_the_process():
    first, second = masks_of(make(), 2)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    again, _ = masks_of(make(), 2)
    assert torch.equal(first, again)
    torch.manual_seed(1)
    (other,) = masks_of(build(MGD, context(SIZES)), 1)
    assert not torch.equal(first, other)


def test_the_students_random_numbers_stay_those_of_plain_training(
    small_cfg, distilled_cfg, build_seeded, make_batch
):
    """Faster R-CNN draws anchors and proposals, after the distiller in the next step."""
    changes = {"DISTILL.METHODS": ("MGD",), "DISTILL.WEIGHT": 0.0}
    models = (small_cfg("FasterRCNN"), distilled_cfg("FasterRCNN", changes))
    plain, distilled = (build_seeded(cfg, seed=0).train() for cfg in models)
    history = []
    for model in (plain, distilled):
        torch.manual_seed(0)
        losses = []
        for iteration in range(2):
            with EventStorage(iteration):
                losses.append(model(make_batch()))
        history.append((losses, torch.random.get_rng_state()))
    (expected, expected_state), (actual, state) = history
    assert torch.equal(state, expected_state)
    for ours, theirs in zip(actual, expected):
        assert ours.pop("loss_MGD_generation") == 0
        assert {k: x.item() for k, x in ours.items()} == {k: x.item() for k, x in theirs.items()}
