"""What a detector computed on a batch."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from .predictions import DensePredictions


class Call(NamedTuple):
    """One call of a module: its positional arguments and what it returned."""

    inputs: tuple
    output: Any


@dataclass
class DetectorOutputs:
    """
    Attributes:
        features: the maps (N, C, H, W) that the detector's head looks at, per stride, finest first.
        head_outputs: what the dense head (`DetectorWrapper.head`) returned, or None.
        calls: of the recorded modules (`Distiller.recorded_modules`), in order.
        predictions: the head's outputs on the cells that both detectors have, where a distiller
            needs them.
    """

    features: dict[int, Tensor]
    head_outputs: Any = None
    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)
    predictions: DensePredictions | None = None
