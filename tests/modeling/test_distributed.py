"""Training on two processes, as Detectron2's launch does on two GPUs."""

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from helpers.training import JUDGING
from torch.nn.parallel import DistributedDataParallel

from aid_d2.aid import mean_gap
from aid_d2.structures import Objects
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage


def train(rank, cfg, batches, folder, start):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = DistributedDataParallel(build_model(cfg), broadcast_buffers=False)
    torch.manual_seed(rank)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    model.train()
    gradients = []
    with EventStorage(start) as storage:
        for batch in batches[rank]:
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            with_gradient = ((n, p.grad) for n, p in model.named_parameters() if p.grad is not None)
            gradients.append({name: grad.clone() for name, grad in with_gradient})
            optimizer.step()
            storage.step()
    state = {k: v.detach() for k, v in model.module.named_parameters()}
    gap = mean_gap(model.module.distiller.aid_gap)
    torch.save((state, gradients, gap), os.path.join(folder, f"{rank}.pth"))
    dist.destroy_process_group()


def train_both(cfg, batches, folder, start=0):
    """What each of two processes saved."""
    # The server imports once, for all processes.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["aid_d2"])
    torch.multiprocessing.start_processes(
        train, (cfg, batches, str(folder), start), nprocs=2, start_method="forkserver"
    )
    return [torch.load(folder / f"{i}.pth") for i in range(2)]


@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_two_processes_keep_equal_parameters(
    distilled_cfg, build_seeded, make_batch, tmp_path, detector
):
    """The second has no objects at all in its first batch; the warm-up begins with weight 0."""
    cfg = distilled_cfg(detector, {"DISTILL.WARMUP_ITERS": 1})
    batches = [
        [make_batch((2, 1), seed=1), make_batch((1, 0), seed=2)],
        [make_batch((0, 0), seed=3), make_batch((0, 2), seed=4)],
    ]
    (first, gradients, _), (second, other, _) = train_both(cfg, batches, tmp_path)
    initial = dict(build_seeded(cfg, 0).named_parameters())
    trainable = {name for name, p in initial.items() if p.requires_grad}
    assert set(first) == set(second) == set(initial)
    for name, p in first.items():
        assert torch.equal(p, second[name]), name
    for a, b in zip(gradients, other):
        assert {n.removeprefix("module.") for n in a} == trainable
        for name in a:
            assert torch.equal(a[name], b[name]), name
    adapters = [n for n in gradients[0] if ".distiller." in n]
    assert all((gradients[0][n] == 0).all() for n in adapters)
    assert any(gradients[1][n].abs().sum() > 0 for n in adapters)
    assert any(not torch.equal(first[name], initial[name]) for name in trainable)


def test_the_weight_of_a_batch_is_of_both_processes(
    distilled_cfg, build_seeded, make_batch, tmp_path
):
    """Sums and positive anchors are added up: the second process has no object at all."""
    cfg = distilled_cfg("RetinaNet", {"DISTILL.AID.GRANULARITY": "batch"})
    batches = [[make_batch((2, 1), seed=1)], [make_batch((0, 0), seed=2)]]
    gap, other = (saved[-1].item() for saved in train_both(cfg, batches, tmp_path, JUDGING))
    assert gap == other
    sums, counts = [], []
    for (batch,) in batches:
        torch.manual_seed(0)
        teacher = build_model(cfg).train().context.teacher
        outputs = teacher.forward_features(batch, "BGR", with_head=True)
        losses = teacher.judge(outputs, Objects.from_inputs(batch, torch.device("cpu")))
        sums.append((losses.cls + losses.box).double().sum().item())
        counts.append((losses.matched_idxs >= 0).sum().item())
    assert counts[0] > 0 == counts[1] and sums[1] > 0.01 * sums[0]
    assert gap == pytest.approx(sum(sums) / counts[0], rel=1e-4)
