"""Between logs, AID and the methods never make the host wait for a GPU, counted on the CPU by the
operations that would.
"""

import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import aid_d2
from aid_d2.aid import GRANULARITIES
from detectron2.utils.events import EventStorage

OWN = str(Path(aid_d2.__file__).parent)
WAITING = {"_local_scalar_dense", "equal", "masked_select", "nonzero", "unique_dim", "_unique2"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# ATSS leaves few anchors of a GFL, and where they are is looked up once for all images.
ALLOWED = {"RetinaNet": 0, "FCOS": 0, "FasterRCNN": 0, "GFL": 1}


class CountWaits(TorchDispatchMode):
    """Notes the innermost line of this project or of Detectron2 of each operation that waits."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        by_mask = name in INDEXING and any(x is not None and x.dtype == torch.bool for x in args[1])
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or by_mask or repeats:
            frames = [f for f in traceback.extract_stack() if "tests" not in Path(f.filename).parts]
            *_, inner = [
                f for f in frames if f.filename.startswith(OWN) or "detectron2" in f.filename
            ]
            self.lines.append((inner.filename, inner.lineno, inner.line))
        return func(*args, **kwargs)


def waits_of(model, batch):
    """Lines that wait, in the second step, of which nothing is logged."""
    mode = CountWaits()
    inner = {name: getattr(model, name) for name in ("_trust", "_distill")}

    def counted(name):
        def run(*args):
            with mode:
                return inner[name](*args)

        return run

    for name in inner:
        setattr(model, name, counted(name))
    with EventStorage(0):
        model(batch)
        mode.lines.clear()
        model(batch)
    return mode.lines


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("detector", ALLOWED)
def test_nothing_of_this_project_waits(
    distilled_cfg, build_seeded, make_batch, detector, granularity
):
    """Detectron2's own functions do: its box transform checks its boxes, its pooler sorts them."""
    changes = {"DISTILL.AID.GRANULARITY": granularity, "DISTILL.AID.RESCALE": True}
    model = build_seeded(distilled_cfg(detector, changes), seed=0).train()
    own = [line for line in waits_of(model, make_batch()) if line[0].startswith(OWN)]
    assert len(own) <= ALLOWED[detector], own


def test_a_wait_is_seen(distilled_cfg, build_seeded, make_batch):
    model = build_seeded(distilled_cfg("RetinaNet"), seed=0).train()
    before = len(waits_of(model, make_batch()))

    def look(method, args, losses):
        assert all(loss >= 0 for loss in losses.values())

    model.distiller["NonLocal"].register_forward_hook(look)
    assert len(waits_of(model, make_batch())) == before + 1
