"""FGD against its formulas in NumPy, one cell at a time, float64."""

import numpy as np
import pytest
import torch
from helpers.toy import (
    BOXES,
    as_batch,
    build,
    constant_weights,
    context,
    maps,
    no_objects,
    numpy_attentions,
    numpy_softmax,
    random_weights,
    shake,
    some_objects,
)
from torch.nn.functional import layer_norm

from aid_d2.distillers.fgd import FGD, GlobalContext, object_masks
from aid_d2.layers.cells import smallest_objects
from aid_d2.structures import LevelShape

SIZES = {8: (5, 6), 16: (3, 3), 32: (1, 2)}
PARTS = ("foreground", "background", "attention", "global")
# a, b, g, l and T of the released configs.
PUBLISHED = {
    "RetinaNet": (1e-3, 5e-4, 5e-4, 5e-6, 0.5),
    "GFL": (1e-3, 5e-4, 5e-4, 5e-6, 0.5),
    "FCOS": (1.6e-3, 8e-4, 8e-4, 8e-6, 0.8),
    "GeneralizedRCNN": (5e-5, 2.5e-5, 5e-5, 5e-7, 0.5),
}


def make(channels=(4, 4), detector="RetinaNet"):
    torch.manual_seed(0)
    return build(FGD, context(SIZES, channels, detector))


def numpy_masks(stride):
    """M_fg and M_bg (2, H, W), painted from the largest box to the smallest."""
    foreground = np.zeros((2, *SIZES[stride]))
    for image, index in ((0, 0), (0, 1), (1, 2)):
        x1, y1 = (int(v // stride) for v in BOXES[index][:2])
        x2, y2 = (int(-(-v // stride)) for v in BOXES[index][2:])
        foreground[image, y1:y2, x1:x2] = 1 / ((y2 - y1) * (x2 - x1))
    nothing = foreground == 0
    return foreground, nothing / np.maximum(nothing.sum((1, 2), keepdims=True), 1)


def numpy_context(x, block):
    """Of one image (C, H, W)."""
    first, norm, _, last = block.transform
    weight = block.attend.weight.detach().numpy()[0, :, 0, 0]
    energy = np.einsum("c,chw->hw", weight, x)
    pooled = torch.from_numpy((x * numpy_softmax(energy)).sum((1, 2)))
    inner = layer_norm(first(pooled), norm.normalized_shape, norm.weight, norm.bias).clamp(min=0)
    return x + last(inner).detach().numpy()[:, None, None]


def test_masks_against_a_painter():
    levels = [LevelShape(stride, *size, anchors=1) for stride, size in SIZES.items()]
    for stride, shown in zip(SIZES, smallest_objects(some_objects(), levels)):
        masks = object_masks(shown, some_objects(), stride)
        for actual, expected in zip(masks, numpy_masks(stride)):
            np.testing.assert_allclose(actual[:, 0].numpy(), expected, rtol=1e-6)
    foreground, background = object_masks(torch.full((2, 2, 4), -1), no_objects(), 8)
    assert (foreground == 0).all() and (background == 1 / 8).all()


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("detector", PUBLISHED)
def test_losses_against_numpy(detector, channels):
    student, teacher = maps(SIZES, channels[0], seed=1), maps(SIZES, channels[1], seed=2)
    weights, method = random_weights(teacher), shake(make(channels, detector))
    expected, temperature = dict.fromkeys(PARTS, 0.0), PUBLISHED[detector][-1]
    for stride in SIZES:
        adapted = method.adapters[stride](student[stride]).detach().numpy()
        for n, masks in enumerate(zip(*numpy_masks(stride))):
            s, t = adapted[n], teacher[stride][n].numpy()
            w = weights.maps[stride][n, 0].numpy()
            (space_s, channels_s), (space_t, channels_t) = (
                numpy_attentions(x, temperature) for x in (s, t)
            )
            difference = channels_t[:, None, None] * space_t * (t - s) ** 2
            for part, mask in zip(PARTS, masks):
                expected[part] += (w * mask * difference).sum() / 2
            pooled = (w * space_t).sum() / space_t.sum()
            expected["attention"] += pooled * np.abs(channels_s - channels_t).sum() / 2
            expected["attention"] += (w * np.abs(space_s - space_t)).sum() / 2
            own = numpy_context(s, method.student_contexts[stride])
            theirs = numpy_context(t, method.teacher_contexts[stride])
            expected["global"] += (w * (theirs - own) ** 2).sum() / 2
    losses = method(as_batch(student, teacher, weights, some_objects()))
    for part, weight in zip(PARTS, PUBLISHED[detector]):
        # The masks are float32.
        assert losses[part].item() == pytest.approx(weight * expected[part], rel=1e-6), part


@pytest.mark.parametrize("weight", [0.3, 1e-3])
def test_constant_weight_scales_each_loss(weight):
    student, teacher = maps(SIZES, 4, seed=1), maps(SIZES, 4, seed=2)
    method = shake(make())
    full, weighted = (
        method(as_batch(student, teacher, constant_weights(teacher, w), some_objects()))
        for w in (1.0, weight)
    )
    for part in PARTS:
        assert full[part] > 0
        assert weighted[part].item() == pytest.approx(weight * full[part].item(), rel=1e-9)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    teacher = maps(SIZES, 4, seed=2)
    student = {s: x.clone().requires_grad_() for s, x in teacher.items()}
    method = make()
    losses = method(as_batch(student, teacher, random_weights(teacher), some_objects()))
    sum(losses.values()).backward()
    assert all(x.item() == 0 for x in losses.values())
    assert all((x.grad == 0).all() for x in student.values())


def test_global_context_starts_as_the_identity_and_its_gradient_is_right():
    x = maps({8: (3, 4)}, 4)[8].requires_grad_()
    block = GlobalContext(4).double()
    assert torch.equal(block(x), x)
    assert torch.autograd.gradcheck(shake(block), x)
