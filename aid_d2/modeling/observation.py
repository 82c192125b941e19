"""What a detector computed on a batch, and how it is read off a forward pass."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from torch import Tensor, nn

from ..losses import Objects
from .dense_output import DenseOutput


class Call(NamedTuple):
    """One call of a module: its positional arguments and what it returned."""

    inputs: Tuple
    output: Any


@dataclass
class Observation:
    """
    Attributes:
        features: the maps (N, C, H, W) that the detector's head looks at, per stride, finest first.
        predictions: output of the dense head (`DetectorFamily.head`), or None.
        calls: of the modules that distillers asked for (`Distiller.taps`), in order.
        dense: the predictions, aligned with those of the other detector, where a distiller needs
            them.
        objects: ground truth of the images, if it was given.
    """

    features: Dict[int, Tensor]
    predictions: Any = None
    calls: Dict[nn.Module, List[Call]] = field(default_factory=dict)
    dense: Optional[DenseOutput] = None
    objects: Optional[Objects] = None


@contextmanager
def record_calls(modules: Iterable[nn.Module]) -> Iterator[Dict[nn.Module, List[Call]]]:
    """While open, keep every call of the modules.

    Yields:
        dict, filled when the modules run. The hooks are gone afterwards.
    """
    calls: Dict[nn.Module, List[Call]] = {module: [] for module in modules}

    def keep(module: nn.Module, inputs: Tuple, output: Any) -> None:
        calls[module].append(Call(inputs, output))

    handles = [module.register_forward_hook(keep) for module in calls]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
