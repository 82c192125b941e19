"""Training steps of small detectors, and what comes out of them."""

import torch

from aid_d2.aid import AID, BATCH_PERIOD, loss_to_weight, mean_gap
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

FAMILIES = ("RetinaNet", "FasterRCNN")
# One in which AID judges the batch.
JUDGING = BATCH_PERIOD - 1
DEFAULT_AID = {
    "DISTILL.AID.ALPHA": AID.alpha,
    "DISTILL.AID.GRANULARITY": AID.granularity,
    "DISTILL.AID.RELATIVE": AID.relative,
}
# Of the default methods.
KD_LOSSES = {
    "loss_AttentionGuided_feature",
    "loss_AttentionGuided_channel",
    "loss_AttentionGuided_spatial",
    "loss_NonLocal_relation",
}


def step(model, batch, iteration=JUDGING, seed=0):
    """Losses of one training step, its random numbers seeded."""
    torch.manual_seed(seed)
    model.train()
    with EventStorage(iteration):
        return model(batch)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def losses_and_gradients(model, batch, iteration=JUDGING):
    model.zero_grad()
    losses = step(model, batch, iteration)
    sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}, gradients(model)


def distillation_of(losses):
    return sum(loss for name, loss in losses.items() if name in KD_LOSSES)


def spy(function, returned):
    """The function, whose results are also appended to a list."""

    def spied(*args, **kwargs):
        returned.append(function(*args, **kwargs))
        return returned[-1]

    return spied


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def train(model, cfg, batch, steps=3):
    """Losses of the student, and parameters, of an optimizer at work on one batch."""
    optimizer = build_optimizer(cfg, model)
    history = []
    model.train()
    with EventStorage(0) as storage:
        for _ in range(steps):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            storage.step()
            history.append({n: x.detach() for n, x in losses.items() if n not in KD_LOSSES})
    student = getattr(model, "student", model)
    return history, {name: p.detach().clone() for name, p in student.named_parameters()}


def batch_weight(model):
    """AID's weight of the whole batch by now, under GRANULARITY batch."""
    return loss_to_weight(mean_gap(model.distiller.aid_gap), model.aid.alpha).item()
