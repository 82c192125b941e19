"""What a detector computed on a batch, and how it is read off a forward pass."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, Tuple

from torch import Tensor, nn

from .families import DetectorFamily


@dataclass
class Observation:
    """
    Attributes:
        features: the maps (N, C, H, W) that the detector's head looks at, per stride, finest first.
        predictions: output of the dense head (`DetectorFamily.head`), or None.
    """

    features: Dict[int, Tensor]
    predictions: Any = None

    @classmethod
    def of(cls, family: DetectorFamily, maps: Dict[str, Tensor], predictions=None) -> "Observation":
        """From the backbone's output by name."""
        return cls({level.stride: maps[level.name] for level in family.levels}, predictions)

    def with_features(self, features: Dict[int, Tensor]) -> "Observation":
        """The same observation with other maps."""
        return replace(self, features=features)


@contextmanager
def record_outputs(modules: Dict[str, nn.Module]) -> Iterator[Dict[str, Any]]:
    """While open, keep what each module returned last.

    Args:
        modules: by the name under which the output is wanted.

    Yields:
        dict, filled when the modules run. The hooks are gone afterwards.
    """
    outputs: Dict[str, Any] = {}

    def hook(name: str):
        def keep(module: nn.Module, inputs: Tuple, output: Any) -> None:
            outputs[name] = output

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
