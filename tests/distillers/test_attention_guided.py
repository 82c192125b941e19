"""Attention-guided distillation against its formulas in NumPy, float64."""

import numpy as np
import pytest
import torch
from helpers.toy import as_batch, build, constant_weights, context, maps, random_weights, shake

from aid_d2.distillers.attention_guided import (
    AttentionGuided,
)
from aid_d2.layers.attention import channel_attention, spatial_attention
from aid_d2.structures import DistillWeights

# Maps of 2 images of 800x1333, which are padded to 800x1344.
REFERENCE_SIZES = {8: (100, 168), 16: (50, 84), 32: (25, 42), 64: (13, 21), 128: (7, 11)}
# Weights of L_AM, L_ATc and L_ATs, and T (AID's released code).
PUBLISHED = {False: (5.6e-4, 2.4e-2, 2.4e-2, 0.1), True: (4e-5, 8e-3, 8e-3, 0.5)}
PARTS = ("feature", "channel", "spatial")


def make(strides, channels=(4, 4), two_stage=False, NORMALIZE=False, **changes):
    """With the published norms, unless NORMALIZE."""
    detector = "GeneralizedRCNN" if two_stage else "RetinaNet"
    return build(
        AttentionGuided, context(strides, channels, detector), NORMALIZE=NORMALIZE, **changes
    )


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def numpy_spatial(x, temperature):
    n, _, h, w = x.shape
    return (h * w * softmax(np.abs(x).mean(1).reshape(n, -1) / temperature, 1)).reshape(n, 1, h, w)


def numpy_channel(x, temperature):
    n, c = x.shape[:2]
    return (c * softmax(np.abs(x).mean((2, 3)) / temperature, 1)).reshape(n, c, 1, 1)


def numpy_conv3(x, weight, bias):
    """3x3 convolution of one channel (N, H, W), zero padding."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    h, w = x.shape[1:]
    return bias + sum(
        weight[i, j] * padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)
    )


def reference(method, student, teacher, weights, two_stage):
    """The three losses; two_stage chooses the published constants."""
    values, temperature = PUBLISHED[two_stage][:3], PUBLISHED[two_stage][3]
    totals = np.zeros(3)
    for stride in student:
        s, t = student[stride].detach().numpy(), teacher[stride].numpy()
        w, key = weights.maps[stride].numpy(), stride
        p = {k: v.detach().numpy() for k, v in method.named_parameters() if f".{key}." in k}
        spatial = (numpy_spatial(t, temperature) + numpy_spatial(s, temperature)) / 2
        channel = numpy_channel(t, temperature)
        if s.shape[1] == t.shape[1]:
            channel = (channel + numpy_channel(s, temperature)) / 2

        f1 = np.einsum("oc,nchw->nohw", p[f"feature_adapters.{key}.weight"][:, :, 0, 0], s)
        f1 = f1 + p[f"feature_adapters.{key}.bias"][:, None, None]
        totals[0] += np.sqrt(np.sum((w * np.sqrt(spatial * channel) * (t - f1)) ** 2))

        pooled = (w * spatial).sum((2, 3)) / spatial.sum((2, 3))
        lin = s.mean((2, 3)) @ p[f"channel_adapters.{key}.weight"].T
        lin = lin + p[f"channel_adapters.{key}.bias"]
        totals[1] += np.sqrt(np.sum((pooled * (t.mean((2, 3)) - lin)) ** 2))

        f3 = numpy_conv3(
            s.mean(1),
            p[f"spatial_adapters.{key}.weight"][0, 0],
            p[f"spatial_adapters.{key}.bias"][0],
        )
        totals[2] += np.sqrt(np.sum((w[:, 0] * (t.mean(1) - f3)) ** 2))
    return dict(zip(PARTS, totals * values))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_attention_has_mean_one_and_follows_its_formula(temperature):
    x = maps({8: (5, 7)}, 6)[8]
    spatial = spatial_attention(x.abs(), temperature)
    channel = channel_attention(x.abs(), temperature)
    np.testing.assert_allclose(spatial.mean((2, 3)).numpy(), 1, rtol=1e-12)
    np.testing.assert_allclose(channel.mean(1).numpy(), 1, rtol=1e-12)
    np.testing.assert_allclose(spatial.numpy(), numpy_spatial(x.numpy(), temperature), rtol=1e-12)
    np.testing.assert_allclose(channel.numpy(), numpy_channel(x.numpy(), temperature), rtol=1e-12)


@pytest.mark.parametrize("channels", [(4, 4), (3, 5), (5, 3)], ids=str)
@pytest.mark.parametrize("two_stage", [False, True])
def test_losses_against_numpy(two_stage, channels):
    sizes = {4: (9, 12), 8: (5, 6), 16: (3, 3), 32: (1, 2), 64: (1, 1)}
    student, teacher = maps(sizes, channels[0], seed=1), maps(sizes, channels[1], seed=2)
    weights = random_weights(teacher)
    method = shake(make(sizes, channels, two_stage))
    losses = method(as_batch(student, teacher, weights))
    expected = reference(method, student, teacher, weights, two_stage)
    assert set(losses) == set(PARTS)
    for part in PARTS:
        assert losses[part].item() == pytest.approx(expected[part], rel=1e-10)


def test_gradient_at_the_student_takes_attention_as_constant():
    """Finite differences of the loss with the masks of the undisturbed student."""
    s, t = maps({8: (3, 4)}, 2, seed=1)[8], maps({8: (3, 4)}, 2, seed=2)[8]
    weight = random_weights({8: t}).maps[8].numpy()
    method = make([8], (2, 2))
    mask = np.sqrt(
        (numpy_spatial(t.numpy(), 0.1) + numpy_spatial(s.numpy(), 0.1))
        / 2
        * (numpy_channel(t.numpy(), 0.1) + numpy_channel(s.numpy(), 0.1))
        / 2
    )

    def loss(x):
        return 5.6e-4 * np.sqrt(np.sum((weight * mask * (t.numpy() - x)) ** 2))

    s.requires_grad_()
    weights = DistillWeights({8: torch.as_tensor(weight)})
    method(as_batch({8: s}, {8: t}, weights))["feature"].backward()
    step, x = 1e-5, s.detach().numpy()
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        numeric = (loss(up) - loss(down)) / (2 * step)
        assert s.grad[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-10)


@pytest.mark.parametrize("weight", [0.3, 1e-3])
def test_constant_weight_scales_each_loss(weight):
    sizes = {8: (5, 6), 16: (3, 3)}
    student, teacher = maps(sizes, 4, seed=1), maps(sizes, 4, seed=2)
    method = shake(make(sizes))
    full = method(as_batch(student, teacher, constant_weights(teacher, 1.0)))
    weighted = method(as_batch(student, teacher, constant_weights(teacher, weight)))
    for part in PARTS:
        assert weighted[part].item() == pytest.approx(weight * full[part].item(), rel=1e-12)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    sizes = {8: (5, 6), 16: (3, 3), 32: (1, 1)}
    teacher = {s: x.float() for s, x in maps(sizes, 4).items()}
    student = {s: x.clone().requires_grad_() for s, x in teacher.items()}
    method = make(sizes).float()
    losses = method(as_batch(student, teacher, random_weights(teacher)))
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0.0] * 3
    for x in [*student.values(), *method.parameters()]:
        assert (x.grad == 0).all()


def reference_maps(seed):
    return maps(REFERENCE_SIZES, 2, seed=seed)


def test_normalized_losses_equal_the_published_ones_at_two_images_of_800x1333():
    student, teacher = reference_maps(1), reference_maps(2)
    plain, normalized = (make(student, (2, 2), NORMALIZE=flag) for flag in (False, True))
    weights = constant_weights(teacher, 1.0)
    expected = plain(as_batch(student, teacher, weights))
    actual = normalized(as_batch(student, teacher, weights))
    for part in PARTS:
        assert actual[part].item() == pytest.approx(expected[part].item(), rel=1e-12)


def repeated(features, times):
    return {s: x.repeat(times, 1, 1, 1) for s, x in features.items()}


@pytest.mark.parametrize("normalize,factor", [(True, 1.0), (False, 2.0**0.5)])
def test_how_the_losses_grow_with_the_batch(normalize, factor):
    sizes = {8: (5, 6), 16: (3, 3)}
    student, teacher = maps(sizes, 4, seed=1), maps(sizes, 4, seed=2)
    weights = random_weights(teacher)
    method = shake(make(sizes, NORMALIZE=normalize))
    once = method(as_batch(student, teacher, weights))
    twice = method(
        as_batch(
            repeated(student, 2), repeated(teacher, 2), DistillWeights(repeated(weights.maps, 2))
        )
    )
    for part in PARTS:
        assert twice[part].item() == pytest.approx(factor * once[part].item(), rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 65504.0])
def test_extreme_maps_give_finite_losses_and_gradients(scale):
    sizes = {8: (5, 6), 16: (1, 1)}
    student = {s: (scale * x).float().requires_grad_() for s, x in maps(sizes, 4, seed=1).items()}
    teacher = {s: (-scale * x).float() for s, x in maps(sizes, 4, seed=2).items()}
    losses = make(sizes).float()(as_batch(student, teacher, constant_weights(teacher, 1e-35)))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(x.grad.isfinite().all() for x in student.values())


def test_every_adapter_has_a_gradient():
    sizes = {8: (5, 6), 16: (1, 1)}
    method = make(sizes, (3, 5))
    losses = method(
        as_batch(maps(sizes, 3, seed=1), maps(sizes, 5, seed=2), random_weights(maps(sizes, 5)))
    )
    sum(losses.values()).backward()
    for name, p in method.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
