"""What a detector computed on a batch, and how it is read off a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..losses import Objects
from .dense_predictions import DensePredictions


class Call(NamedTuple):
    """One call of a module: its positional arguments and what it returned."""

    inputs: tuple
    output: Any


@dataclass
class DetectorOutputs:
    """
    Attributes:
        features: the maps (N, C, H, W) that the detector's head looks at, per stride, finest first.
        head_outputs: output of the dense head (`DetectorWrapper.head`), or None.
        calls: of the modules that distillers asked for (`Distiller.taps`), in order.
        predictions: the predictions, aligned with those of the other detector, where a distiller needs
            them.
        objects: ground truth of the images, if it was given.
    """

    features: dict[int, Tensor]
    head_outputs: Any = None
    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)
    predictions: DensePredictions | None = None
    objects: Objects | None = None


@contextmanager
def record_calls(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[Call]]]:
    """While open, keep every call of the modules.

    Yields:
        dict, filled when the modules run. The hooks are gone afterwards.
    """
    calls: dict[nn.Module, list[Call]] = {module: [] for module in modules}

    def keep(module: nn.Module, inputs: tuple, output: Any) -> None:
        calls[module].append(Call(inputs, output))

    handles = [module.register_forward_hook(keep) for module in calls]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
