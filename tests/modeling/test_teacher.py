"""The teacher: frozen, outside the module tree, and without a trace after the step."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from helpers.training import (
    FAMILIES,
    assert_equal,
    step,
    train,
)
from torch import nn

from aid_d2.deploy.detector import local_weights
from aid_d2.modeling.checks import check_classes, check_teacher_on
from aid_d2.modeling.teacher import Teacher, teacher_of
from detectron2.data import MetadataCatalog
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathManager


def with_bn(small_cfg, build_seeded, save_teacher, detector):
    """A teacher whose statistics would move in train mode."""
    cfg = small_cfg(detector, {"MODEL.RESNETS.NORM": "BN", "MODEL.FPN.NORM": "BN"})
    return save_teacher(cfg, build_seeded(cfg, 11))


@pytest.mark.parametrize("detector", FAMILIES)
def test_teacher_stays_frozen(
    build_seeded, small_cfg, distilled_cfg, save_teacher, make_batch, detector
):
    files = with_bn(small_cfg, build_seeded, save_teacher, detector)
    cfg = distilled_cfg(detector, {**files, "SOLVER.BASE_LR": 1e-4})
    model = build_seeded(cfg, 0)
    before = copy.deepcopy(model.teacher.model.state_dict())
    assert any(key.endswith("running_mean") for key in before)
    for _ in range(2):
        model.eval()
        model.train()
        train(model, cfg, make_batch(), steps=1)
    assert not any(m.training for m in model.teacher.model.modules())
    assert not any(p.requires_grad for p in model.teacher.model.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())
    assert_equal(before, model.teacher.model.state_dict())


def test_a_part_of_the_student_that_is_kept_in_eval_mode_stays_so(
    build_seeded, distilled_cfg, make_batch
):
    """Also where AID computes the student's losses once more."""
    model = build_seeded(distilled_cfg("RetinaNet", {"DISTILL.AID.RELATIVE": True}), 0).train()
    model.student.backbone.eval()
    before = [module.training for module in model.modules()]
    with EventStorage(0):
        model(make_batch())
    assert [module.training for module in model.modules()] == before


def test_a_plain_detector_may_have_a_teacher_of_its_own():
    """A mean teacher, say, that is none of aid_d2's; nor need it have a Detectron2 backbone."""
    model = nn.Linear(1, 1)
    model.teacher = nn.Linear(1, 1)
    assert teacher_of(model) is None
    check_classes(model, ())


def test_teacher_belongs_to_no_module(build_seeded, distilled_cfg):
    cfg = distilled_cfg("RetinaNet")
    model = build_seeded(cfg, 0)
    mine = {id(p) for p in [*model.parameters(), *model.buffers()]}
    optimized = {id(p) for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    saved = {x.data_ptr() for x in model.state_dict().values() if x.numel()}
    for p in [*model.teacher.model.parameters(), *model.teacher.model.buffers()]:
        assert id(p) not in mine and id(p) not in optimized
        assert p.numel() == 0 or p.data_ptr() not in saved
    assert not set(model.modules()) & set(model.teacher.model.modules())
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in model.distiller.parameters()} <= trainable == optimized


def test_weights_of_objects_and_background_are_logged_apart(
    build_seeded, distilled_cfg, make_batch
):
    """An object as large as the image leaves no background; without objects there is no other."""
    model = build_seeded(distilled_cfg("RetinaNet"), 0).train()
    covered, empty = make_batch((1,)), make_batch((0,))
    covered[0]["instances"].gt_boxes.tensor[:] = torch.tensor([0.0, 0.0, 96.0, 64.0])
    logged = []
    for batch in (covered, empty):
        with EventStorage(19) as storage:
            model(batch)
        values = {k.removeprefix("aid/weight_"): v[0] for k, v in storage.latest().items()}
        logged.append({k: values[k] for k in ("objects", "background") if k in values})
    assert [list(x) for x in logged] == [["objects"], ["background"]]
    assert 0 < logged[0]["objects"] < 1 and 0 < logged[1]["background"] < 1


def test_teacher_follows_the_student(build_seeded, distilled_cfg):
    model = build_seeded(distilled_cfg("RetinaNet"), 0).to(torch.float64)
    for part in (model.student, model.distiller, model.teacher.model):
        tensors = [*part.parameters(), *part.buffers()]
        assert {x.dtype for x in tensors if x.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("wrapper", FAMILIES)
def test_teacher_leaves_the_students_curves_alone(
    build_seeded, small_cfg, distilled_cfg, make_batch, wrapper
):
    """At any iteration only teacher/* and aid/* are added, and at some they are."""
    plain, model = (build_seeded(cfg, 0) for cfg in (small_cfg(wrapper), distilled_cfg(wrapper)))
    added = set()
    for iteration in (0, 1, 19, 20):
        curves = []
        for detector in (plain, model):
            torch.manual_seed(0)
            detector.train()
            with EventStorage(iteration) as storage:
                detector(make_batch())
            curves.append({k: v.latest() for k, v in storage.histories().items()})
            histograms = {name for name, *_ in (x.values() for x in storage._histograms)}
            added |= histograms if detector is model else set()
            assert detector is model or not histograms
        assert {k: curves[1][k] for k in curves[0]} == curves[0]
        added |= set(curves[1]) - set(curves[0])
    assert added and all(name.startswith(("teacher/", "aid/")) for name in added)
    losses = {"RetinaNet": {"dense"}, "FasterRCNN": {"dense", "roi"}}[wrapper]
    assert {x for x in added if x.startswith("teacher/")} == {f"teacher/loss_{x}" for x in losses}


def test_logged_weights_are_the_mean_of_the_maps(build_seeded, distilled_cfg, make_batch):
    """With `level` granularity a map has one value, exp(-alpha x loss)."""
    changes = {"DISTILL.AID.GRANULARITY": "level", "DISTILL.AID.ALPHA": 0.1}
    model = build_seeded(distilled_cfg("RetinaNet", changes), 0).train()
    for iteration in (0, 19, 20):
        with EventStorage(iteration) as storage:
            model(make_batch())
        curves = {k: v.latest() for k, v in storage.histories().items()}
        logged = [curves[k] for k in curves if k.startswith("aid/weight_stride")]
        if logged:
            # The levels' losses add up to the detector's, and so their weights multiply.
            loss = curves["teacher/loss_dense"]
            assert np.prod(logged) == pytest.approx(np.exp(-0.1 * loss), rel=1e-4)
            hints = storage.smoothing_hints()
            assert not any(hints[k] for k in curves if k.startswith(("aid/", "teacher/")))
            return
    pytest.fail("nothing was logged")


@pytest.mark.parametrize("main", [True, False])
def test_only_the_process_with_the_writers_keeps_histograms(
    build_seeded, distilled_cfg, make_batch, monkeypatch, main
):
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: main)
    kept = []
    with EventStorage(19) as storage:
        storage.put_histogram = lambda name, weights: kept.append(name)
        build_seeded(distilled_cfg("RetinaNet"), 0).train()(make_batch())
    assert kept == ["aid/weight"] * main


def hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


@pytest.mark.parametrize("detector", FAMILIES)
def test_a_step_leaves_nothing_behind(build_seeded, distilled_cfg, make_batch, detector):
    model = build_seeded(distilled_cfg(detector), 0)
    maps = []

    def watch(module, inputs, output):
        maps.extend(weakref.ref(x) for x in output.values())

    for backbone in (model.student.backbone, model.teacher.model.backbone):
        backbone.register_forward_hook(watch)
    count = hooks(model)
    step(model, make_batch())
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    losses = step(model, make_batch())
    assert len(maps) == 4 * 5
    sum(losses.values()).backward()
    del losses
    gc.collect()
    assert [x for x in maps if x() is not None] == []
    assert hooks(model) == count
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes


def test_nothing_survives_a_failed_step(build_seeded, distilled_cfg, make_batch, monkeypatch):
    model = build_seeded(distilled_cfg("RetinaNet"), 0)
    seen = []

    def fail(*args):
        seen.append(hooks(model))
        raise RuntimeError("no losses today")

    monkeypatch.setattr(model.student, "losses", fail)
    with pytest.raises(RuntimeError, match="no losses today"):
        step(model, make_batch())
    assert seen[0] > 0 and hooks(model) == 0
    assert "label_anchors" not in vars(model.student)


@pytest.mark.parametrize(
    "classes,message",
    [(list("abcde"), "3 classes, and the data set 'other_classes' 5"), (list("bac"), "order")],
)
def test_it_is_not_evaluated_on_other_classes(small_cfg, build_seeded, classes, message):
    teacher = Teacher(build_seeded(small_cfg("RetinaNet"), 0), "BGR", list("abc"))
    MetadataCatalog.get("other_classes").set(thing_classes=classes)
    try:
        with pytest.raises(ValueError, match=message):
            check_teacher_on(["other_classes"], teacher)
    finally:
        MetadataCatalog.pop("other_classes")


def test_weights_on_the_internet_are_downloaded(monkeypatch, tmp_path):
    (tmp_path / "model.pth").write_bytes(b"")
    paths = {"detectron2://model.pth": str(tmp_path / "model.pth")}
    monkeypatch.setattr(PathManager, "get_local_path", lambda path: paths.get(path, path))
    assert local_weights("detectron2://model.pth") == str(tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match="--weights .*gone.pth"):
        local_weights("gone.pth")
