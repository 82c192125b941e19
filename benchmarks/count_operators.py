r"""How many operators AID and each method start in the forward pass of a step, views left out.

    python benchmarks/count_operators.py

On a GPU each is at least one kernel, and a step of many small ones waits for the host. The
detectors are those of `configs/kitti`, small and of random weights, on two images of eight objects.
Operators do not grow with the size of a map.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode

from aid_d2 import load_config
from aid_d2.aid import BATCH_PERIOD
from aid_d2.distillers import DISTILLER_REGISTRY
from aid_d2.engine.gpu_check import DETECTORS, SMALL
from aid_d2.engine.step_cost import Case, noise, with_random_teacher
from aid_d2.engine.trainer import Trainer
from detectron2.utils.events import EventStorage


class Operators(TorchDispatchMode):
    """Counts what computes something: no views, no allocations."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aliases = any(x.alias_info and not x.alias_info.is_write for x in function._schema.returns)
        name = function.overloadpacket.__name__
        if not aliases and "empty" not in name and name != "_unsafe_view":
            self.counts[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **(kwargs or {}))


class Counted:
    """Something callable, whose operators are counted."""

    def __init__(self, inner, mode: Operators):
        self.inner, self.mode = inner, mode

    def __call__(self, *args):
        with self.mode:
            return self.inner(*args)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    names = sorted(name for name, _ in DISTILLER_REGISTRY)
    columns = {detector: {} for detector in DETECTORS}
    with tempfile.TemporaryDirectory() as folder:
        for detector, column in columns.items():
            cfg = load_config(f"kitti/{detector}_R_50_aid.yaml", SMALL)
            cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.DISTILL.AID.PRESET = "cpu", "", ""
            cfg = with_random_teacher(cfg, Path(folder))
            case = Case(cfg, 128, 160, images=2, objects=8)
            for name in names:
                try:
                    column.update(count(case.changed("DISTILL.METHODS", [name]), name))
                except ValueError:
                    column[name] = None  # a method that this detector cannot use
    rows = [{"": name, **{d: columns[d][name] for d in DETECTORS}} for name in ["AID", *names]]
    print(tabulate(rows, headers="keys", tablefmt="github", missingval="-"))


def count(case: Case, name: str) -> dict[str, int]:
    """Operators of AID's weights and of a method's forward pass."""
    model = Trainer.build_model(case.cfg).train()
    batch, modes = noise(case, model), {"AID": Operators(), name: Operators()}
    method = model.distiller[name]
    method.register_forward_pre_hook(lambda *args: modes[name].__enter__() and None)
    method.register_forward_hook(lambda *args: modes[name].__exit__(None, None, None))
    model.aid = Counted(model.aid, modes["AID"])
    with EventStorage(BATCH_PERIOD - 1):
        model(batch)
    return {key: mode.counts.total() for key, mode in modes.items()}


if __name__ == "__main__":
    main()
