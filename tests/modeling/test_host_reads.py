"""Between two logs distillation reads nothing off the device, but for what the detectors do inside.

Reading makes the host wait for all that the device has been given. A CPU has no such waits, but the
operations that would cause them are the same.
"""

from collections import Counter

import pytest
import torch
from helpers.training import JUDGING
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aid_d2.aid import GRANULARITIES
from aid_d2.structures import Objects
from detectron2.utils.events import EventStorage

FAMILIES = ("RetinaNet", "FCOS", "GFL", "FasterRCNN")
READS = (
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"),
    *("aten::unique_dim", "aten::_unique2", "aten::bincount", "torchvision::nms"),
)
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class HostReads(TorchDispatchMode):
    """Counts operations whose result has to be known to the host."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name
        masked = name in INDEXING and any(
            isinstance(x, Tensor) and x.dtype is torch.bool for x in args[1]
        )
        counted = name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READS or masked or counted:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def reads(model, batch):
    with HostReads() as mode:
        model(batch)
    return mode.counts


# Of a step more than in the student's own, inside Detectron2: in ImageList the size of each of the
# two images, which the host has;
IMAGES = Counter({"aten::_local_scalar_dense": 2})
# where AID judges a detector, the check in Box2BoxTransform.get_deltas; two for each image in
# FCOS.label_anchors; for each map in ROIPooler, and its count of boxes. GFL looks up its positive
# anchors.
JUDGED = {
    "RetinaNet": Counter({"aten::_local_scalar_dense": 1}),
    "FCOS": Counter({"aten::index_put_": 4}),
    "GFL": Counter({"aten::nonzero": 1}),
    "FasterRCNN": Counter(
        {"aten::_local_scalar_dense": 2, "aten::nonzero": 4, "aten::repeat_interleave": 1}
    ),
}


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("detector", FAMILIES)
def test_nothing_is_read_between_logs(
    distilled_cfg, build_seeded, make_batch, monkeypatch, detector, granularity, relative
):
    changes = {"DISTILL.AID.GRANULARITY": granularity, "DISTILL.AID.RELATIVE": relative}
    cfg = distilled_cfg(detector, changes)
    model = build_seeded(cfg, seed=0).train()
    batch = make_batch((3, 2))
    # The ground truth comes from the data loader, on the host.
    objects = Objects.from_inputs(batch, torch.device("cpu"))
    monkeypatch.setattr(Objects, "from_inputs", lambda *args: objects)
    with EventStorage(JUDGING):
        more = reads(model, batch)
        more.subtract(reads(model.student, batch))
    expected = IMAGES + JUDGED[detector]
    if relative:  # the student is judged too
        expected += JUDGED[detector]
    assert +more == expected and not -more


def test_what_is_logged_is_read(distilled_cfg, build_seeded, make_batch):
    """The counter counts: every twentieth step has more."""
    model = build_seeded(distilled_cfg("RetinaNet"), seed=0).train()
    batch = make_batch((3, 2))
    with EventStorage(18):
        quiet = reads(model, batch)
    with EventStorage(19):
        logging = reads(model, batch)
    assert sum(logging.values()) > sum(quiet.values())
