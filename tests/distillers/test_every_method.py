"""Every method on every detector, with AID and without, or its refusal."""

import pytest
import torch

from aid_d2.distillers import DISTILLER_REGISTRY
from detectron2.utils.events import EventStorage

METHODS = sorted(name for name, _ in DISTILLER_REGISTRY)
DETECTORS = ("RetinaNet", "FCOS", "GFL", "FasterRCNN")
DENSE = ("RetinaNet", "FCOS", "GFL")
# Methods that not every detector can use.
SERVES = {"CrossKD": DENSE, "LD": ("GFL",), "DKD": ("FasterRCNN",)}
SERVED = [(m, d) for m in METHODS for d in SERVES.get(m, DETECTORS)]
REFUSED = [(m, d) for m in METHODS for d in DETECTORS if (m, d) not in SERVED]
# The towers of the small detectors have a single convolution.
SHALLOW = {f"DISTILL.CROSSKD.{name.upper()}.POSITION": 1 for name in DENSE}


def make(distilled_cfg, build_seeded, method, detector, changes):
    changes = {"DISTILL.METHODS": (method,), **changes}
    if method == "CrossKD":
        changes.update(SHALLOW)
    return build_seeded(distilled_cfg(detector, changes), seed=0)


def train(model, batch, steps):
    """Losses and gradients of each of the first steps of SGD."""
    model.train()
    # The maps of untrained networks without batch statistics are large, and so are the losses.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-8)
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


@pytest.mark.parametrize("aid", [False, True], ids=["alone", "aid"])
@pytest.mark.parametrize("method,detector", SERVED)
def test_trains(distilled_cfg, build_seeded, make_batch, method, detector, aid):
    """Three steps, and one on images without objects."""
    changes = {"DISTILL.AID.ENABLED": aid}
    model = make(distilled_cfg, build_seeded, method, detector, changes)
    trained = {f"distiller.{name}" for name, _ in model.distiller.named_parameters()}
    steps, seen = train(model, make_batch(), steps=3), set()
    for losses, gradients in steps:
        assert sum(x for n, x in losses.items() if n.startswith(f"loss_{method}_")) > 0
        seen |= {name for name in trained if gradients[name].any()}
    for losses, gradients in steps + train(model, make_batch(counts=(0, 0)), steps=1):
        assert all(x.isfinite() for x in losses.values())
        assert all(x.isfinite().all() for x in gradients.values())
        assert trained <= gradients.keys()
    # Objects of this size are not imitated on the coarsest levels.
    assert seen if method == "FGFI" else seen == trained


@pytest.mark.parametrize("method,detector", SERVED)
def test_alpha_zero_is_the_method_alone(distilled_cfg, build_seeded, make_batch, method, detector):
    """Bit for bit: losses and gradients of the first step."""
    histories = []
    for changes in ({"DISTILL.AID.ENABLED": False}, {"DISTILL.AID.ALPHA": 0.0}):
        model = make(distilled_cfg, build_seeded, method, detector, changes)
        histories += train(model, make_batch(), steps=1)
    (alone, alone_gradients), (gated, gated_gradients) = histories
    assert alone.keys() == gated.keys() and alone_gradients.keys() == gated_gradients.keys()
    assert all(torch.equal(alone[name], gated[name]) for name in alone)
    assert all(torch.equal(alone_gradients[n], gated_gradients[n]) for n in alone_gradients)


@pytest.mark.parametrize("method", METHODS)
def test_recomputing_saves_memory_and_changes_nothing(
    distilled_cfg, build_seeded, make_batch, method
):
    """What the backward pass keeps, and the losses, gradients and buffers of two steps."""
    detector = SERVES.get(method, DETECTORS)[0]
    results, kept = [], []
    for recompute in (False, True):
        kept.append(0)

        def count(x):
            kept[-1] += x.numel()
            return x

        changes = {"DISTILL.RECOMPUTE": recompute}
        model = make(distilled_cfg, build_seeded, method, detector, changes)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            history = train(model, make_batch(), steps=2)
        results.append((history, dict(model.distiller.named_buffers())))
    # DKD works on the logits of a few boxes.
    assert method == "DKD" or kept[1] < kept[0]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("method,detector", REFUSED)
def test_refuses_a_detector_it_cannot_serve(distilled_cfg, build_seeded, method, detector):
    with pytest.raises(ValueError, match=f"{method} cannot serve a .*; it serves"):
        make(distilled_cfg, build_seeded, method, detector, {})
