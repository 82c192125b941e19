"""Every method on every detector, with AID and without, or its refusal."""

import pytest
import torch
from helpers.methods import DETECTORS, METHODS, SERVED, SHALLOW
from helpers.toy import shake

from aid_d2.distillers import DISTILLER_REGISTRY
from detectron2.utils.events import EventStorage

SUPPORTING = [name for name in METHODS if DISTILLER_REGISTRY.get(name).supports_bf16]
# What the others lack.
REFUSAL = {"CrossKD": "towers", "LD": "distributions", "DKD": "box head"}
REFUSED = [(m, d) for m in METHODS for d in DETECTORS if (m, d) not in SERVED]


# Deep, since Detectron2 builds shallower ones wide alone: a twentieth of their parameters.
NARROW = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
}


@pytest.fixture(scope="module")
def make(small_cfg, save_teacher, distilled_cfg, build_seeded):
    """`make(method, detector, changes)`: a distilled detector of narrow ones."""
    teachers = {}
    for detector in DETECTORS:
        cfg = small_cfg(detector, NARROW)
        teachers[detector] = save_teacher(cfg, build_seeded(cfg, seed=100))

    def build(method, detector, changes=None):
        changes = {**NARROW, **teachers[detector], "DISTILL.METHODS": (method,), **(changes or {})}
        if method == "CrossKD":
            changes.update(SHALLOW)
        return build_seeded(distilled_cfg(detector, changes), seed=0)

    return build


def train(model, batch, steps):
    """Losses and gradients of each of the first steps of SGD."""
    model.train()
    # The maps of untrained networks without batch statistics are huge, and so are the losses.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-11)
    history = []
    for iteration in range(steps):
        torch.manual_seed(iteration)
        optimizer.zero_grad()
        with EventStorage(iteration):
            losses = model(batch)
            sum(losses.values()).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        history.append(({name: x.detach() for name, x in losses.items()}, gradients))
        optimizer.step()
    return history


@pytest.mark.parametrize("method,detector", SERVED)
def test_trains(make, make_batch, method, detector):
    """Three steps, one on images without objects, and one on images of different sizes."""
    model = make(method, detector)
    trained = {f"distiller.{name}" for name, _ in model.distiller.named_parameters()}
    steps, seen = train(model, make_batch(), steps=3), set()
    for losses, gradients in steps:
        assert sum(x for n, x in losses.items() if n.startswith(f"loss_{method}_")) > 0
        seen |= {name for name in trained if gradients[name].any()}
    sizes = (64, 96), (96, 60), (40, 130)
    mixed = [make_batch((count,), size)[0] for count, size in zip((3, 2, 0), sizes)]
    others = [train(model, batch, steps=1)[0] for batch in (make_batch((0, 0)), mixed)]
    for losses, gradients in steps + others:
        assert all(x.isfinite() for x in losses.values())
        assert all(x.isfinite().all() for x in gradients.values())
        assert trained <= gradients.keys()
    # Objects of this size are not imitated on the coarsest levels, where a softmax over the one
    # location gives FGD's weights no gradient.
    assert seen if method in ("FGFI", "FGD") else seen == trained


@pytest.mark.parametrize("method,detector", SERVED)
def test_alpha_zero_is_the_method_alone(make, make_batch, method, detector):
    """Bit for bit: losses and gradients of a step, and of one on images without objects."""
    histories = []
    for changes in ({"DISTILL.AID.ENABLED": False}, {"DISTILL.AID.ALPHA": 0.0}):
        model = make(method, detector, changes)
        batches = make_batch(), make_batch(counts=(0, 0))
        histories.append([train(model, batch, steps=1)[0] for batch in batches])
    for (alone, alone_gradients), (gated, gated_gradients) in zip(*histories):
        assert alone.keys() == gated.keys() and alone_gradients.keys() == gated_gradients.keys()
        assert all(torch.equal(alone[name], gated[name]) for name in alone)
        assert all(torch.equal(alone_gradients[n], gated_gradients[n]) for n in alone_gradients)


@pytest.mark.parametrize("method,detector", REFUSED)
def test_refuses_a_detector_it_cannot_serve(make, method, detector):
    with pytest.raises(ValueError, match=f"DISTILL.METHODS: {method} .*{REFUSAL[method]}"):
        make(method, detector)


@pytest.mark.parametrize("name", SUPPORTING)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_methods_that_bear_it_multiply_as_the_teacher_does(
    distilled_cfg, build_seeded, make_batch, precision, name
):
    methods = (name, "PKD", "CWD")
    changes = {"DISTILL.PRECISION": precision, "DISTILL.METHODS": methods}
    cfg = distilled_cfg("RetinaNet", {**changes, "MODEL.FPN.OUT_CHANNELS": 8})
    model = build_seeded(cfg, seed=0).train()
    types = {method: set() for method in methods}
    for method in methods:
        for layer in model.distiller[method].modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(
                    lambda layer, args, out, method=method: types[method].add(out.dtype)
                )
    with EventStorage(0):
        model(make_batch())
    assert types == {
        name: {getattr(torch, precision)},
        "PKD": {torch.float32},
        "CWD": {torch.float32},
    }


@pytest.mark.parametrize("name", SUPPORTING)
@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_methods_in_bfloat16_are_near_the_exact_ones(
    distilled_cfg, build_seeded, make_batch, detector, name
):
    model = build_seeded(distilled_cfg(detector, {"DISTILL.METHODS": (name,)}), seed=0).train()
    method, seen = model.distiller[name], []
    method.register_forward_pre_hook(lambda method, args: seen.append(args))
    losses, gradients = [], []
    with EventStorage(0):
        model(make_batch())
        (batch,) = seen[0]
        features = {s: x.detach().requires_grad_() for s, x in batch.student.features.items()}
        batch.student.features = features
        shake(method)
        for fast in (False, True):
            method.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                losses.append(sum(method(batch).values()))
            reaching = torch.autograd.grad(
                losses[-1],
                list(features.values()),
                retain_graph=True,
                materialize_grads=True,
            )
            losses[-1].backward()
            own = torch.cat([p.grad.flatten() for p in method.parameters()])
            gradients.append([*reaching, own])
    exact, fast = losses
    assert fast.dtype == torch.float32
    assert fast.item() == pytest.approx(exact.item(), rel=5e-3)
    for exact, fast in zip(*gradients):
        assert (fast - exact).norm() <= 0.04 * exact.norm()
