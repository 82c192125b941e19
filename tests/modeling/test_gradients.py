"""Every parameter has a gradient, in full and in mixed precision."""

import pytest
import torch
from helpers.training import FAMILIES, KD_LOSSES, gradients, losses_and_gradients, step

from aid_d2.aid import GRANULARITIES

# --- gradients of the adapters


@pytest.mark.parametrize("counts", [(2, 1), (0, 0), (0, 2)], ids=str)
@pytest.mark.parametrize("warmup", [0, 100])
@pytest.mark.parametrize("detector", FAMILIES)
def test_every_parameter_has_a_gradient_in_each_step(
    build_seeded, distilled_cfg, wide_teachers, make_batch, detector, warmup, counts
):
    """Else DDP waits for it for ever."""
    changes = {**wide_teachers[detector], "DISTILL.WARMUP_ITERS": warmup}
    model = build_seeded(distilled_cfg(detector, changes), 0)
    losses, grads = losses_and_gradients(model, make_batch(counts), iteration=0)
    expected = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(grads) == expected
    adapters = torch.cat([g.flatten() for n, g in grads.items() if n.startswith("distiller.")])
    assert adapters.isfinite().all()
    assert (adapters == 0).all() == (warmup > 0)
    assert all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("size", [(33, 40), (64, 300)])
def test_images_of_unusual_size(build_seeded, distilled_cfg, make_batch, size, images):
    batch = make_batch((1,) * images, size=size)
    for record in batch:
        record["instances"].gt_boxes.tensor[:] = torch.tensor([3.0, 4, 30, 31])
    losses = step(build_seeded(distilled_cfg("RetinaNet"), 0), batch)
    assert all(loss.isfinite() for loss in losses.values())


# --- mixed precision


@pytest.mark.parametrize(
    "detector,granularity", [*(("RetinaNet", g) for g in GRANULARITIES), ("FasterRCNN", "instance")]
)
def test_autocast(build_seeded, distilled_cfg, make_batch, detector, granularity):
    """With PRECISION float32 distillation is float32, on maps of bfloat16 too, and near to the
    losses in full precision.
    """
    adapted = []
    model = build_seeded(distilled_cfg(detector, {"DISTILL.AID.GRANULARITY": granularity}), 0)
    full = step(model, make_batch())
    dtypes = []
    model.student.backbone.register_forward_hook(
        lambda _, __, output: dtypes.extend(x.dtype for x in output.values())
    )
    for module in model.distiller.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(lambda _, __, output: adapted.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = step(model, make_batch())
    assert torch.bfloat16 in dtypes
    assert set(adapted) == {torch.float32}
    for name in KD_LOSSES:
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(full[name].item(), rel=0.2)
    sum(losses.values()).backward()
    assert all(g.isfinite().all() for g in gradients(model).values())
