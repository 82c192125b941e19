"""What a GPU can break: results, precisions, waiting, checkpoints, processes."""

import os

import pytest
import torch
from helpers.commands import command
from helpers.methods import SERVED, SHALLOW
from helpers.training import DEFAULT_AID, JUDGING, batch_weight
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from aid_d2.aid import BATCH_PERIOD
from aid_d2.engine import argument_parser, run
from detectron2.modeling import RetinaNet
from detectron2.utils.events import EventStorage

pytestmark = pytest.mark.gpu

# Without a GPU the default methods are enough to see that the tests run.
ON_CPU = os.environ.get("AID_D2_TEST_DEVICE") == "cpu"
CASES = [x for x in SERVED if x[0] in ("CrossKD", "PKD") or not ON_CPU]

# What Faster R-CNN samples at random is otherwise another choice on another device.
ALL_SAMPLES = {
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 10**6,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 10**6,
}
# Untrained networks with frozen norms have maps beyond float16.
NORMS = {"MODEL.RESNETS.NORM": "BN"}


@pytest.fixture
def make(distilled_cfg, build_seeded):
    """`make(detector, methods, device, changes)`: a distilled detector, built on the CPU."""

    def build(detector, methods, device, changes=None):
        keys = {"DISTILL.METHODS": methods, **SHALLOW, **ALL_SAMPLES, **(changes or {})}
        model = build_seeded(distilled_cfg(detector, keys), seed=0).train()
        return model.to(device)

    return build


def step(model, batch, dtype=torch.float32):
    """Losses and gradients of a step."""
    torch.manual_seed(0)
    device = next(model.parameters()).device
    half = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
    with EventStorage(0), half:
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return {name: x.item() for name, x in losses.items()}, gradients


@pytest.mark.parametrize("method,detector", CASES)
def test_as_on_the_cpu(make, make_batch, device, method, detector):
    """In float32: losses, and the gradient as a whole."""
    results = [
        step(make(detector, (method,), x), make_batch()) for x in (torch.device("cpu"), device)
    ]
    (losses, gradients), (ours, our_gradients) = results
    assert ours == pytest.approx(losses, rel=1e-3, abs=1e-5)
    wanted, found = (
        torch.cat([g[n].flatten() for n in gradients]) for g in (gradients, our_gradients)
    )
    assert (found - wanted).norm() <= 1e-2 * wanted.norm()


@pytest.mark.parametrize("method,detector", CASES)
def test_half_precision(make, make_batch, device, method, detector):
    """Within a tenth of float32, and finite. float16 is the GPU's alone."""
    exact, _ = step(make(detector, (method,), device, NORMS), make_batch())
    types = [torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    for dtype in types:
        losses, gradients = step(make(detector, (method,), device, NORMS), make_batch(), dtype)
        assert all(x.isfinite().all() for x in gradients.values())
        ours = [x for name, x in losses.items() if name.startswith(f"loss_{method}_")]
        wanted = [x for name, x in exact.items() if name.startswith(f"loss_{method}_")]
        assert sum(ours) == pytest.approx(sum(wanted), rel=0.1, abs=1e-3)


def test_float16_with_scaled_gradients(make, make_batch, device):
    """Three steps as Detectron2's AMPTrainer takes them."""
    if device.type != "cuda":
        pytest.skip("float16 is for GPUs")
    model = make("RetinaNet", ("PKD", "ADL"), device, NORMS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-6)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    for iteration in range(3):
        with EventStorage(iteration), torch.autocast("cuda", torch.float16):
            loss = sum(model(make_batch()).values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert loss.isfinite()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_the_default_aid_as_on_the_cpu(
    make, small_cfg, save_teacher, build_seeded, make_batch, device, detector
):
    """The weight of a teacher that is behind its student."""
    cfg = small_cfg(detector, {**SHALLOW, **ALL_SAMPLES})
    teacher, weights = build_seeded(cfg, seed=1), []
    dense = teacher.head if detector == "RetinaNet" else teacher.proposal_generator.rpn_head
    last = dense.bbox_pred if detector == "RetinaNet" else dense.anchor_deltas
    last.bias.data += 1.0
    keys = {**save_teacher(cfg, teacher), **DEFAULT_AID, "DISTILL.AID.ALPHA": 0.05}
    for x in (torch.device("cpu"), device):
        model = make(detector, ("PKD",), x, keys)
        for iteration in range(BATCH_PERIOD):
            torch.manual_seed(0)
            with EventStorage(iteration):
                model(make_batch())
        weights.append(batch_weight(model))
    assert 0 < weights[0] < 1
    assert weights[1] == pytest.approx(weights[0], rel=1e-2)


@pytest.mark.parametrize("method", ["PKD", "FGD", "ADL", "CrossKD"])
def test_methods_do_not_wait(make, make_batch, device, method):
    """No synchronization once the detectors have computed. AID's, for which Detectron2's transform
    of boxes reads, are counted by tests/modeling/test_host_reads.py.
    """
    if device.type != "cuda":
        pytest.skip("a CPU does not wait")
    model = make("RetinaNet", (method,), device)
    distiller, seen = model.distiller[method], []
    handle = distiller.register_forward_pre_hook(lambda module, args: seen.append(args))
    with EventStorage(JUDGING):
        model(make_batch())
    handle.remove()
    (arguments,) = seen
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        distiller(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_teacher_follows(make, make_batch, device):
    """From the CPU to the device and back, with the same losses."""
    model = make("GFL", ("PKD",), torch.device("cpu"))
    before, _ = step(model, make_batch())
    on_device, _ = step(model.to(device), make_batch())
    assert next(model.teacher.model.parameters()).device.type == device.type
    after, _ = step(model.to("cpu"), make_batch())
    assert after == before and on_device == pytest.approx(before, rel=1e-3)


def test_checkpoints_go_both_ways(make, make_batch, device, tmp_path):
    """A checkpoint written on the device loads on the CPU, and the losses are the same."""
    model = make("RetinaNet", ("MGD",), device)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded = make("RetinaNet", ("MGD",), torch.device("cpu"))
    with torch.no_grad():
        for p in loaded.parameters():
            p.zero_()
    state = torch.load(tmp_path / "model.pth", map_location="cpu", weights_only=True)
    loaded.load_state_dict(state)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.cpu()), name


def test_distributed_with_one_process(make, make_batch, device, tmp_path):
    """DDP over nccl takes the same step as without."""
    alone, gradients = step(make("GFL", ("PKD", "CrossKD"), device), make_batch())
    backend = "nccl" if device.type == "cuda" else "gloo"
    os.environ.setdefault("LOCAL_RANK", "0")
    distributed.init_process_group(
        backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = make("GFL", ("PKD", "CrossKD"), device)
        ids = [0] if device.type == "cuda" else None
        parallel = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        losses, ours = step(parallel, make_batch())
    finally:
        distributed.destroy_process_group()
    assert losses == pytest.approx(alone, rel=1e-4)
    assert ours.keys() == {f"module.{name}" for name in gradients}


def test_compiled(make, make_batch, device):
    """The compiled backbones of both compute what they did."""
    if device.type != "cuda":
        pytest.skip("compiling for the CPU takes a minute, and needs a compiler")
    plain, _ = step(make("RetinaNet", ("PKD",), device), make_batch())
    keys = {"SOLVER.COMPILE": True, "DISTILL.TEACHER.COMPILE": True}
    compiled, _ = step(make("RetinaNet", ("PKD",), device, keys), make_batch())
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_the_command_trains(device, rectangles, tmp_path, monkeypatch):
    """By `--num-gpus 1`. Where memory runs out, the command goes on from there with --resume."""
    keys = {"MODEL.DEVICE": device.type, "SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 100}

    def train(*flags):
        flags = ("--num-gpus", "1", *flags)
        arguments = command("retinanet_R_50.yaml", tmp_path, rectangles, *flags, **keys)
        run(argument_parser().parse_args(arguments))

    def on_a_small_device(self, batch):
        if self.training and next(enough, None) is None:
            torch.empty(2**50, device=device)
        return forward(self, batch)

    if device.type == "cuda":
        forward, enough = RetinaNet.forward, iter(range(3))
        monkeypatch.setattr(RetinaNet, "forward", on_a_small_device)
        with pytest.raises(MemoryError, match="--resume"):
            train()
        monkeypatch.undo()
    train("--resume")
    assert torch.load(tmp_path / "model_final.pth", weights_only=False)["iteration"] == 3
