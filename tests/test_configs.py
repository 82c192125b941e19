"""Every yaml under configs/: it builds, its names fit together, and each kind of it trains."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from aid_d2 import add_aid_config
from aid_d2.modeling.teacher import Teacher
from aid_d2.modeling.wrappers import DetectorWrapper, wrap
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer

ROOT = Path(__file__).parents[1]
NAMES = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob("configs/*/*.yaml"))
    if not path.name.startswith("Base-") and path.parent.name != "suites"
]
DISTILLED = "DistilledDetector"


@cache
def _load(name):
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.merge_from_file(str(ROOT / name))
    # ImageNet weights are neither in the repository nor downloaded by a test.
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.CHECKPOINT = False, ""
    return cfg


def load(name):
    return _load(name).clone()


def is_distilled(name):
    return _load(name).MODEL.META_ARCHITECTURE == DISTILLED


def teacher_of(name):
    return _load(name).DISTILL.TEACHER.CONFIG_FILE


def methods_of(cfg):
    """With `auto`, PKD where predictions cannot be compared, else CrossKD."""
    best = "PKD" if cfg.DISTILL.STUDENT == "GeneralizedRCNN" else "CrossKD"
    return [best if method == "auto" else method for method in cfg.DISTILL.METHODS]


def plain_student_of(name):
    """The nearest config that `name` is based on and that has no teacher."""
    while is_distilled(name):
        base = yaml.safe_load((ROOT / name).read_text())["_BASE_"]
        name = (ROOT / name).parent.joinpath(base).resolve().relative_to(ROOT).as_posix()
    return name


def shrink(name):
    """The config with its narrowest layers and three classes: what is left tells kinds apart."""
    cfg = load(name)
    model = cfg.MODEL
    model.DEVICE, model.WEIGHTS = "cpu", ""
    if model.RESNETS.DEPTH >= 50:
        # Shallower ones know neither groups nor bottlenecks.
        model.RESNETS.DEPTH = 50
        model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS = 8, 32
        model.RESNETS.WIDTH_PER_GROUP = 1 if model.RESNETS.NUM_GROUPS > 1 else 8
    model.FPN.OUT_CHANNELS //= 8
    model.ROI_BOX_HEAD.FC_DIM = 32
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    for when in ("TRAIN", "TEST"):
        model.RPN[f"PRE_NMS_TOPK_{when}"], model.RPN[f"POST_NMS_TOPK_{when}"] = 100, 30
    for node in (model.RETINANET, model.GFL, model.FCOS, model.ROI_HEADS):
        node.NUM_CLASSES = 3
        node.SCORE_THRESH_TEST = 0.0  # an untrained detector is sure of nothing
    return cfg


def kind(name):
    """A key that is equal for configs whose small versions run the same code."""
    cfg = shrink(name)
    teacher = kind(teacher_of(name)) if is_distilled(name) else None
    cfg.DISTILL.pop("TEACHER")
    return json.dumps([cfg.MODEL, cfg.DISTILL, cfg.INPUT.FORMAT, teacher], sort_keys=True)


KINDS = {kind(name): name for name in reversed(NAMES)}


def build_without_memory(cfg):
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("name", NAMES)
def test_builds_at_full_size_with_the_classes_of_its_data(name, monkeypatch):
    def teacher(cls, cfg):
        teacher_cfg = load(cfg.DISTILL.TEACHER.CONFIG_FILE)
        return cls(build_without_memory(teacher_cfg), teacher_cfg.INPUT.FORMAT)

    monkeypatch.setattr(Teacher, "from_config", classmethod(teacher))
    # Without memory anchors have no values to compare; small detectors do compare them.
    monkeypatch.setattr(DetectorWrapper, "same_anchors", lambda *wrappers: True)
    cfg = load(name)
    model = build_without_memory(cfg)
    build_optimizer(cfg, model)
    wrappers = [wrap(getattr(model, "student", model))]
    if is_distilled(name):
        wrappers.append(model.teacher.wrapper)
        assert list(model.distiller) == methods_of(cfg)
        assert len(model.context.pairs) == len(wrappers[0].levels)
    num_classes = {wrapper.num_classes for wrapper in wrappers}
    assert len(num_classes) == 1
    assert len(cfg.DATASETS.TRAIN) > 0 and len(cfg.DATASETS.TEST) > 0
    files = {name for name, *_ in cfg.DATASETS.COCO_JSON}
    for dataset in cfg.DATASETS.TRAIN + cfg.DATASETS.TEST:
        # What classes are in a file of the user's is known where the file is.
        if dataset not in files:
            assert dataset in DatasetCatalog
            assert num_classes == {len(MetadataCatalog.get(dataset).thing_classes)}


def test_output_dirs_are_distinct_and_say_whose_they_are():
    folders = [_load(name).OUTPUT_DIR for name in NAMES]
    assert len(set(folders)) == len(folders)
    for name, folder in zip(NAMES, folders):
        if "/quickstart/" in name:
            assert folder.startswith("output/quickstart/")
        else:
            assert folder == name.replace("configs/", "output/").removesuffix(".yaml")


@pytest.mark.parametrize("name", filter(is_distilled, NAMES))
def test_distilled_config_is_its_student_and_a_teacher_of_the_same_data(name):
    cfg, student = load(name), load(plain_student_of(name))
    assert teacher_of(name) in NAMES and not is_distilled(teacher_of(name))
    teacher = load(teacher_of(name))
    assert cfg.DISTILL.TEACHER.WEIGHTS == f"{teacher.OUTPUT_DIR}/model_final.pth"
    for when in ("TRAIN", "TEST"):
        assert teacher.DATASETS[when] == cfg.DATASETS[when] == student.DATASETS[when]
    assert cfg.DISTILL.STUDENT == student.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = student.MODEL.META_ARCHITECTURE
    # Some methods were published with it.
    cfg.SOLVER.CLIP_GRADIENTS = student.SOLVER.CLIP_GRADIENTS
    for node in ("MODEL", "INPUT", "SOLVER"):
        assert cfg[node] == student[node], node


@pytest.fixture(scope="module")
def teacher_files(save_teacher):
    """`teacher_files(name)`: a small random teacher of this config, as DISTILL.TEACHER keys."""

    @cache
    def files(name):
        cfg = shrink(name)
        return save_teacher(cfg, build_model(cfg))

    return files


@pytest.mark.parametrize("name", KINDS.values())
def test_each_kind_trains_and_detects(name, teacher_files, make_batch, storage):
    torch.manual_seed(0)
    cfg = shrink(name)
    if is_distilled(name):
        keys = teacher_files(teacher_of(name))
        cfg.merge_from_list([x for item in keys.items() for x in item])
    model = build_model(cfg)
    batch = make_batch(counts=(2, 0), size=(64, 96))
    losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    if is_distilled(name):
        for method in methods_of(cfg):
            assert any(key.startswith(f"loss_{method}_") for key in losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        detections = [x["instances"] for x in model.eval()(batch)]
    assert len(detections) == len(batch) and sum(map(len, detections)) > 0
