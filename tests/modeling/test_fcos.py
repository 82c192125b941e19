"""Detectron2's FCOS from a yaml, and its losses as a teacher."""

import pytest
import torch
from helpers.tiny import K, dense_cfg, instances
from helpers.training import JUDGING
from torch import nn

from aid_d2 import DistilledDetector
from aid_d2.aid import AID, GRANULARITIES, image_loss, level_loss
from aid_d2.distillers import build_distillers
from aid_d2.modeling.context import pair_levels
from aid_d2.modeling.teacher import Teacher
from aid_d2.modeling.wrappers import wrap
from aid_d2.modeling.wrappers.fcos import FCOSWrapper
from aid_d2.structures import BACKGROUND, IGNORED, Objects
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

STRIDES = (8, 16, 32, 64, 128)


def tiny_cfg():
    return dense_cfg("FCOS", num_convs=2)


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return build_model(tiny_cfg())


@pytest.fixture(scope="module")
def model():
    return tiny_model()


TRUTH = [
    instances([[10.3, 12.1, 60.2, 70.9], [50.2, 20.4, 88.1, 50.2]], [0, 2]),
    instances([], []),
    instances([[5.1, 40.3, 44.7, 90.2]], [1]),
]


def batch():
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": 255 * torch.rand(3, 96, 96, generator=generator), "instances": x} for x in TRUTH
    ]


def random_predictions(seed, num_images):
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(num_images, channels, -(-96 // s), -(-96 // s), generator=generator)
            for s in STRIDES
        ]
        for channels in (K, 4, 1)
    ]


def maps_like(predictions):
    return {s: x.new_zeros(len(x), 32, *x.shape[-2:]) for s, x in zip(STRIDES, predictions[0])}


def own_losses(model, predictions, truth, monkeypatch):
    """The detector's own losses over this batch's number of positives, not over a running mean."""
    monkeypatch.setattr(model, "_ema_update", lambda name, value, initial: value, raising=False)
    with EventStorage():
        return model.forward_training(
            None,
            list(maps_like(predictions).values()),
            [[x.clone() for x in maps] for maps in predictions],
            truth,
        )


def unreduced_losses(model, predictions, truth):
    objects = Objects.from_inputs([{"instances": x} for x in truth], torch.device("cpu"))
    return wrap(model).unreduced_losses(maps_like(predictions), predictions, objects)


def test_trains_a_step_and_decodes():
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    assert losses.keys() == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert all(x.isfinite() for x in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    model.eval().test_score_thresh = 0.0
    with torch.no_grad():
        results = [x["instances"] for x in model(batch())]
    assert all(0 < len(x) <= 100 for x in results)
    assert all(x.pred_boxes.tensor.isfinite().all() for x in results)


def test_a_batch_without_any_object_trains():
    model = tiny_model().train()
    with EventStorage():
        losses = model(batch()[1:2])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_trains_and_decodes_in_half_precision():
    model = tiny_model().train()
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch())
    sum(losses.values()).backward()
    assert all(x.isfinite() and x.dtype == torch.float32 for x in losses.values())
    model.eval().test_score_thresh = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(batch()[:1])[0]["instances"]
    assert result.pred_boxes.tensor.dtype == result.scores.dtype == torch.float32


def test_built_as_published(model):
    cfg = tiny_cfg()
    cfg.MODEL.FPN.OUT_CHANNELS = 256
    published = build_model(cfg)
    norms = [x for x in published.head.modules() if isinstance(x, nn.GroupNorm)]
    assert len(norms) == 4 and all(x.num_groups == 32 for x in norms)
    assert published.backbone.top_block.in_feature == "p5"
    assert published.head.cls_score.bias.tolist() == pytest.approx([-4.595] * K, abs=1e-3)
    assert model.head.cls_score.in_channels == 32


@pytest.mark.parametrize("norm, kind", [("", None), ("BN", nn.BatchNorm2d)])
def test_other_norms(norm, kind):
    cfg = tiny_cfg()
    cfg.MODEL.FCOS.NORM = norm
    tower = build_model(cfg).head.cls_subnet
    assert any(isinstance(x, kind) for x in tower.modules()) if kind else len(tower) == 4


@pytest.mark.parametrize("images", [[0], [2], [0, 2], [0, 1, 2], [1]])
def test_levels_add_up_to_the_detectors_own_losses(model, images, monkeypatch):
    truth = [TRUTH[i] for i in images]
    predictions = random_predictions(1, len(truth))
    own = own_losses(model, predictions, truth, monkeypatch)
    losses = unreduced_losses(model, predictions, truth)
    torch.testing.assert_close(level_loss(losses).sum(), sum(own.values()), rtol=1e-4, atol=1e-5)
    cls = losses.cls.sum() / losses.batch_normalizer
    torch.testing.assert_close(cls, own["loss_fcos_cls"], rtol=1e-4, atol=1e-5)


def test_levels_of_an_image_add_up_to_its_own_losses(model, monkeypatch):
    predictions = random_predictions(2, len(TRUTH))
    per_image = image_loss(unreduced_losses(model, predictions, TRUTH)).sum(1)
    for n in range(len(TRUTH)):
        alone = [[x[n : n + 1] for x in maps] for maps in predictions]
        own = own_losses(model, alone, TRUTH[n : n + 1], monkeypatch)
        torch.testing.assert_close(per_image[n], sum(own.values()), rtol=1e-4, atol=1e-5)


def test_wrapper_takes_the_detectors_assignment_and_ignores_regions(model):
    # More objects than classes, so that an object's index cannot be taken for a class.
    boxes = [[i * 10.0, 5.0, i * 10.0 + 22.0, 27.0] for i in range(7)]
    objects, region = instances(boxes, [1] * 7), instances([[0.0, 40.0, 96.0, 96.0]], [-1])
    predictions = random_predictions(3, 1)
    losses = unreduced_losses(model, predictions, [Instances.cat([objects, region])])
    anchors = model.anchor_generator(list(maps_like(predictions).values()))
    labels, matched = model.label_anchors(anchors, [objects])
    positive = losses.matched_idxs[0] >= 0
    assert torch.equal(positive, labels[0] == 1)
    matched = getattr(matched[0], "tensor", matched[0])
    assert torch.equal(objects.gt_boxes.tensor[losses.matched_idxs[0][positive]], matched[positive])
    ignored = losses.matched_idxs == IGNORED
    assert ignored.any() and (losses.matched_idxs == BACKGROUND).any()
    assert (losses.cls[ignored] == 0).all() and (losses.box[~(losses.matched_idxs >= 0)] == 0).all()


def test_an_object_the_teacher_misses_is_not_trusted(model):
    truth = [instances([[14.0, 14.0, 82.0, 82.0]], [1])]
    predictions = random_predictions(4, 1)
    found, missed = ([[x.clone() for x in maps] for maps in predictions] for _ in range(2))
    for maps, score in ((found, 6.0), (missed, -6.0)):
        for x in maps[0]:
            x.fill_(-7.0)[:, 1] = score
    weights = {}
    for name, maps in (("found", found), ("missed", missed)):
        losses = unreduced_losses(model, maps, truth)
        weights[name] = (
            AID(alpha=1.0, granularity="instance", relative=False)
            .weights(losses)
            .maps[8][0, 0, 6, 6]
            .item()
        )
    assert weights["missed"] < 0.3 * weights["found"], weights


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_distillation_step(granularity, relative):
    cfg = tiny_cfg()
    student, teacher = tiny_model(1), Teacher(tiny_model(2), "BGR")
    context = pair_levels(wrap(student), teacher.wrapper)
    assert [pair.stride for pair in context.pairs] == list(STRIDES)
    model = DistilledDetector(
        student=student,
        teacher=teacher,
        distillers=build_distillers(cfg, context),
        context=context,
        aid=AID(alpha=0.5, granularity=granularity, relative=relative),
    ).train()
    with EventStorage(JUDGING):
        losses = model(batch())
    sum(losses.values()).backward()
    assert all(x.isfinite() for x in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_wrapper_is_found(model):
    wrapper = wrap(model)
    assert isinstance(wrapper, FCOSWrapper)
    assert wrapper.num_classes == K and wrapper.head is model.head
    assert [level.stride for level in wrapper.levels] == list(STRIDES)
