"""The config: published defaults, and that every key does what it says."""

from dataclasses import replace

import pytest
import torch

from aid_d2 import AID, CONFIG_EXTENSIONS, add_aid_config, load_config
from aid_d2.config import plain_student
from aid_d2.modeling.teacher import load_teacher_config
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage


@pytest.fixture(scope="module")
def cfg():
    result = get_cfg()
    add_aid_config(result)
    return result


# (weight of L_AM, of L_ATc, of L_ATs, T), weight of L_NLD
PUBLISHED = {"ONE_STAGE": ((5.6e-4, 2.4e-2, 2.4e-2, 0.1), 4.9e-4)}
PUBLISHED["TWO_STAGE"] = ((4e-5, 8e-3, 8e-3, 0.5), 4e-5)


@pytest.mark.parametrize("stage", PUBLISHED)
def test_defaults_are_the_published_constants(cfg, stage):
    attention, relation = PUBLISHED[stage]
    node = cfg.DISTILL.ATTENTIONGUIDED[stage]
    keys = ("FEATURE_WEIGHT", "CHANNEL_WEIGHT", "SPATIAL_WEIGHT", "TEMPERATURE")
    assert tuple(node[key] for key in keys) == attention
    assert cfg.DISTILL.NONLOCAL[stage].WEIGHT == relation


def test_defaults_of_the_blocks_are_the_published_ones(cfg):
    assert cfg.DISTILL.AID.ENABLED and cfg.DISTILL.ENABLED and cfg.DISTILL.WEIGHT == 1.0
    assert tuple(cfg.DISTILL.METHODS) == ("auto",)
    assert tuple(cfg.DISTILL.NONLOCAL.INNER_CHANNELS) == (64, 64, 128, 128, 128)
    assert tuple(cfg.DISTILL.NONLOCAL.POOL) == (8, 4, 2, 2, 2)


def test_nothing_of_detectron2s_own_config_changes(cfg):
    plain = get_cfg()

    def compare(old, new, path=""):
        for key, value in old.items():
            if isinstance(value, type(old)):
                compare(value, new[key], f"{path}{key}.")
            else:
                assert new[key] == value, path + key

    compare(plain, cfg)


def test_a_dumped_config_reads_back(cfg, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    again = get_cfg()
    add_aid_config(again)
    again.merge_from_file(str(path))
    assert again.DISTILL == cfg.DISTILL


def test_configs_of_before_the_precision_was_renamed_load(cfg, tmp_path):
    (tmp_path / "config.yaml").write_text("VERSION: 2\nDISTILL: {TEACHER: {PRECISION: auto}}\n")
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert "PRECISION" not in cfg.DISTILL.TEACHER


def test_keys_of_a_further_project(cfg, tmp_path):
    """Of a student, and of its teacher."""

    def extend(cfg):
        cfg.MODEL.THEIRS = "default"

    file = tmp_path / "config.yaml"
    file.write_text("VERSION: 2\nMODEL: {THEIRS: ours}\n")
    distilled = cfg.clone()
    distilled.DISTILL.TEACHER.CONFIG_FILE = str(file)
    CONFIG_EXTENSIONS.append(extend)
    try:
        assert load_config(str(file)).MODEL.THEIRS == "ours"
        assert load_teacher_config(distilled).MODEL.THEIRS == "ours"
    finally:
        CONFIG_EXTENSIONS.remove(extend)


def test_a_plain_student_needs_to_be_named(cfg):
    distilled = cfg.clone()
    distilled.MODEL.META_ARCHITECTURE = "DistilledDetector"
    with pytest.raises(ValueError, match="DISTILL.STUDENT ''.*META_ARCHITECTURE"):
        plain_student(distilled)
    distilled.DISTILL.STUDENT = "RetinaNet"
    assert plain_student(distilled).MODEL.META_ARCHITECTURE == "RetinaNet"


# Each key of DISTILL with a value that has to show in the losses of a step. The blocks of
# NonLocal are shaken first: as they start, the identity, all of them are alike.
EFFECTS = {
    "RetinaNet": {
        "ENABLED": False,
        "METHODS": ["NonLocal"],
        "WEIGHT": 2.0,
        "WARMUP_ITERS": 7,
        "AID.ENABLED": False,
        "AID.ALPHA": 0.3,
        "AID.GRANULARITY": "image",
        "AID.RELATIVE": True,
        "ATTENTIONGUIDED.ONE_STAGE.FEATURE_WEIGHT": 1.0,
        "ATTENTIONGUIDED.ONE_STAGE.CHANNEL_WEIGHT": 1.0,
        "ATTENTIONGUIDED.ONE_STAGE.SPATIAL_WEIGHT": 1.0,
        "ATTENTIONGUIDED.ONE_STAGE.TEMPERATURE": 300.0,
        "ATTENTIONGUIDED.NORMALIZE": False,
        "NONLOCAL.ONE_STAGE.WEIGHT": 1.0,
        "NONLOCAL.INNER_CHANNELS": [3, 4, 5, 6, 7],
        "NONLOCAL.POOL": [1, 1, 1, 1, 1],
        "NONLOCAL.NORMALIZE": False,
    },
    "FasterRCNN": {
        "ATTENTIONGUIDED.TWO_STAGE.FEATURE_WEIGHT": 1.0,
        "ATTENTIONGUIDED.TWO_STAGE.CHANNEL_WEIGHT": 1.0,
        "ATTENTIONGUIDED.TWO_STAGE.SPATIAL_WEIGHT": 1.0,
        "ATTENTIONGUIDED.TWO_STAGE.TEMPERATURE": 300.0,
        "NONLOCAL.TWO_STAGE.WEIGHT": 1.0,
    },
}
# Shown to have an effect by other means.
ELSEWHERE = {
    "STUDENT",  # modeling/test_wrong_configs.py
    "TEACHER.CONFIG_FILE",  # test_checkpoints.py
    "TEACHER.WEIGHTS",
    "AID.NORMALIZER",  # below, with another granularity
    "NONLOCAL.DETACH_TEACHER",  # below
    "PRECISION",  # test_precision.py
    "TEACHER.COMPILE",
    "INHERIT",  # test_inherit.py
    "AID.PRESET",  # below
    "AID.MASKS",  # modeling/test_mask_aid.py
}


def keys_of(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, type(node)):
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_key_is_covered_here(cfg):
    """A key that is added has to be added to EFFECTS too; methods added later have own tests."""
    mine = ("AID", "TEACHER", "ATTENTIONGUIDED", "NONLOCAL")
    keys = {k for k in keys_of(cfg.DISTILL) if "." not in k or k.split(".")[0] in mine}
    assert keys == ELSEWHERE | {k for effects in EFFECTS.values() for k in effects}


def shaken_losses(model, batch):
    for name, p in model.distiller.named_parameters():
        generator = torch.Generator().manual_seed(len(name))
        p.data = torch.randn(p.shape, generator=generator)
    torch.manual_seed(0)
    with EventStorage(1):
        return {name: loss.item() for name, loss in model.train()(batch).items()}


@pytest.fixture(scope="module")
def losses_of(distilled_cfg, build_seeded, make_batch):
    def losses(detector, changes):
        changes = {f"DISTILL.{key}": value for key, value in changes.items()}
        model = build_seeded(distilled_cfg(detector, changes), 0)
        return shaken_losses(model, make_batch((1, 1)))

    return losses


@pytest.fixture(scope="module")
def default_losses(losses_of):
    return {detector: losses_of(detector, {}) for detector in EFFECTS}


@pytest.mark.parametrize(
    "detector,key", [(detector, key) for detector, effects in EFFECTS.items() for key in effects]
)
def test_every_key_has_an_effect_and_on_distillation_alone(
    losses_of, default_losses, detector, key
):
    default, changed = default_losses[detector], losses_of(detector, {key: EFFECTS[detector][key]})
    own = [name for name in default if "_AttentionGuided_" not in name and "_NonLocal_" not in name]
    assert {name: changed[name] for name in own} == {name: default[name] for name in own}
    assert changed != default
    method = {"ATTENTIONGUIDED": "AttentionGuided", "NONLOCAL": "NonLocal"}.get(key.split(".")[0])
    if method:
        different = {name for name in default if changed[name] != default[name]}
        assert all(f"_{method}_" in name for name in different)


def test_the_papers_preset_decides_all_of_its_keys(cfg):
    """AID's released code: one weight a level, exp(-0.1 D), D as the detector's own loss."""
    node = cfg.DISTILL.AID.clone()
    node.PRESET = "PAPER"
    expected = AID(alpha=0.1, granularity="level", normalizer="native", relative=False)
    assert AID.from_config(node) == expected
    node.ENABLED = False
    assert AID.from_config(node) == replace(expected, enabled=False)
    node.PRESET = "AUTHORS"
    with pytest.raises(ValueError, match="DISTILL.AID.PRESET is 'AUTHORS'.*PAPER"):
        AID.from_config(node)


@pytest.mark.parametrize("key,value", [("ALPHA", 0.5), ("GRANULARITY", "instance")])
def test_a_key_that_the_preset_decides_is_refused(cfg, key, value):
    node = cfg.DISTILL.AID.clone()
    node.PRESET, node[key] = "PAPER", value
    with pytest.raises(
        ValueError, match=f"PRESET PAPER sets DISTILL.AID.{key} .*{value}.*PRESET ''"
    ):
        AID.from_config(node)


def test_the_config_of_an_older_run_still_loads(cfg, tmp_path):
    text = "DISTILL: {RECOMPUTE: True, AID: {RESCALE: True}, TEACHER: {PRECISION: float32}}"
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(str(tmp_path / "config.yaml")) == cfg


def test_normalizer_has_an_effect_on_levels(losses_of):
    one, other = (
        losses_of("RetinaNet", {"AID.GRANULARITY": "level", "AID.NORMALIZER": normalizer})
        for normalizer in ("native", "per_level")
    )
    assert one != other


def test_detach_teacher_leaves_its_blocks_out_of_training(distilled_cfg, build_seeded):
    trainable = []
    for flag in (False, True):
        changes = {"DISTILL.NONLOCAL.DETACH_TEACHER": flag}
        blocks = build_seeded(distilled_cfg("RetinaNet", changes), 0).distiller["NonLocal"]
        trainable.append({p.requires_grad for p in blocks.teacher_blocks.parameters()})
        assert {p.requires_grad for p in blocks.student_blocks.parameters()} == {True}
    assert trainable == [{True}, {False}]
