"""A detector of one's own: any meta-architecture with a Detectron2 backbone."""

import pytest
import torch
from helpers.training import DEFAULT_AID, KD_LOSSES
from torch import nn

from aid_d2.modeling.checks import check_classes
from aid_d2.modeling.wrappers import wrap
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage


@META_ARCH_REGISTRY.register()
class MeanOfFinestMap(nn.Module):
    """A detector in name only."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1), False)

    def preprocess_image(self, batched_inputs):
        images = [x["image"].float() - self.pixel_mean for x in batched_inputs]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def forward(self, batched_inputs):
        maps = self.backbone(self.preprocess_image(batched_inputs).tensor)
        mean = maps["p3"].mean((1, 2, 3))
        return {"loss_mean": mean.square().mean()} if self.training else list(mean)


@META_ARCH_REGISTRY.register()
class NoBackbone(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.layer = nn.Linear(1, 1)


def toy_cfg(small_cfg, changes=None):
    return small_cfg("RetinaNet", {"MODEL.META_ARCHITECTURE": "MeanOfFinestMap", **(changes or {})})


@pytest.fixture(scope="module")
def toy_teacher(small_cfg, build_seeded, save_teacher):
    cfg = toy_cfg(small_cfg)
    return save_teacher(cfg, build_seeded(cfg, 50))


def step(model, batch):
    with EventStorage(0):
        return model.train()(batch)


@pytest.mark.parametrize("aid", [True, False])
@pytest.mark.parametrize("teacher,strides", [("RetinaNet", 5), ("FasterRCNN", 3)])
def test_as_a_student_of_a_known_teacher(
    small_cfg, distilled_cfg, build_seeded, make_batch, teacher, strides, aid
):
    changes = {"DISTILL.STUDENT": "MeanOfFinestMap", "DISTILL.AID.ENABLED": aid}
    model = build_seeded(distilled_cfg("RetinaNet", changes, teacher=teacher), 0)
    plain = build_seeded(toy_cfg(small_cfg), 0)
    assert len(model.context.pairs) == strides
    expected = step(plain, make_batch())["loss_mean"]
    losses = step(model, make_batch())
    assert set(losses) == {"loss_mean"} | KD_LOSSES
    assert torch.equal(losses["loss_mean"], expected)
    sum(losses[name] for name in KD_LOSSES).backward()
    assert model.student.backbone.bottom_up.res3[0].conv1.weight.grad.abs().sum() > 0
    model.eval()
    assert torch.equal(torch.stack(model(make_batch())), torch.stack(plain.eval()(make_batch())))


def test_as_a_student_of_the_default_aid_which_is_off(distilled_cfg, build_seeded):
    changes = {"DISTILL.STUDENT": "MeanOfFinestMap", **DEFAULT_AID}
    assert not build_seeded(distilled_cfg("RetinaNet", changes), 0).aid.enabled


@pytest.mark.parametrize("student", ["RetinaNet", "FasterRCNN"])
def test_as_a_teacher_without_aid(distilled_cfg, build_seeded, make_batch, toy_teacher, student):
    changes = {**toy_teacher, "DISTILL.AID.ENABLED": False}
    model = build_seeded(distilled_cfg(student, changes), 0)
    losses = step(model, make_batch())
    assert KD_LOSSES <= set(losses)
    assert all(losses[name].isfinite() and losses[name] > 0 for name in KD_LOSSES)


@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_data_of_other_classes_than_the_teachers_need_aid_off(distilled_cfg, build_seeded, classes):
    """The teacher's loss is that on the student's labels."""
    MetadataCatalog.get(f"of_classes_{classes}").thing_classes = list(classes)

    def check(aid):
        changes = {"DISTILL.STUDENT": "MeanOfFinestMap", "DISTILL.AID.ENABLED": aid}
        model = build_seeded(distilled_cfg("RetinaNet", changes), 0)
        check_classes(model, [f"of_classes_{classes}"])

    check(aid=False)
    message = f"has {len(classes)} classes.*the teacher 3.*DISTILL.AID.ENABLED False"
    with pytest.raises(ValueError, match=message):
        check(aid=True)


def test_as_a_teacher_with_aid_it_is_named_with_a_remedy(
    distilled_cfg, build_seeded, make_batch, toy_teacher
):
    with pytest.raises(
        (NotImplementedError, ValueError),
        match="MeanOfFinestMap.*RetinaNet.*DISTILL.AID.ENABLED False",
    ):
        step(build_seeded(distilled_cfg("RetinaNet", toy_teacher), 0), make_batch())


def test_a_model_without_backbone_is_named(small_cfg, distilled_cfg, build_seeded):
    model = build_seeded(small_cfg("RetinaNet", {"MODEL.META_ARCHITECTURE": "NoBackbone"}), 0)
    with pytest.raises(ValueError, match="NoBackbone.*backbone"):
        wrap(model)
    with pytest.raises(ValueError, match="NoBackbone.*backbone"):
        build_seeded(distilled_cfg("RetinaNet", {"DISTILL.STUDENT": "NoBackbone"}), 0)
