"""Training and evaluation mode of a detector's parts, and what it is wrapped in."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector itself, also of one under DistributedDataParallel."""
    return getattr(model, "module", model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in eval mode; then each part in the mode it had, also one that was kept in eval mode
    by itself.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
