"""A run is resumed with the config that it was started with."""

import pytest

from aid_d2.config import default_config
from aid_d2.engine.resume import check_unchanged


@pytest.fixture
def cfg(tmp_path):
    """Of a run that has a checkpoint, as Detectron2 leaves it."""
    cfg = default_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    return cfg


@pytest.mark.parametrize(
    "key, value",
    [
        ("DISTILL.METHODS", "('PKD',)"),
        ("DISTILL.TEACHER.WEIGHTS", "other.pth"),
        ("MODEL.RETINANET.NUM_CLASSES", "5"),
    ],
)
def test_a_change_is_named(cfg, key, value):
    before = open(f"{cfg.OUTPUT_DIR}/config.yaml").read()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=f"changed: {key} from .* to .*OUTPUT_DIR"):
        check_unchanged(cfg)
    assert open(f"{cfg.OUTPUT_DIR}/config.yaml").read() == before


def test_a_longer_schedule_is_no_change(cfg):
    cfg.merge_from_list(["SOLVER.MAX_ITER", "7", "DISTILL.METHODS", str(cfg.DISTILL.METHODS)])
    check_unchanged(cfg)


def test_another_spelling_of_the_teachers_path_is_no_change(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.merge_from_list(["DISTILL.TEACHER.WEIGHTS", "teacher/model_final.pth"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    cfg.merge_from_list(["DISTILL.TEACHER.WEIGHTS", str(tmp_path / "teacher/model_final.pth")])
    check_unchanged(cfg)


def test_a_change_without_effect_is_told(cfg, caplog):
    """The optimizer's rate comes with the checkpoint."""
    cfg.merge_from_list(["SOLVER.BASE_LR", "0.5"])
    check_unchanged(cfg)
    assert "SOLVER.BASE_LR from 0.001 to 0.5 has no effect" in caplog.text


@pytest.mark.parametrize(
    "changes,now",
    [
        (["GRANULARITY", "instance"], "instance, alpha 8, relative"),
        (["PRESET", "PAPER"], "level, alpha 0.1"),
        (["ENABLED", False], "off"),
    ],
)
def test_another_aid_is_told(cfg, caplog, changes, now):
    cfg.DISTILL.AID.merge_from_list(changes)
    check_unchanged(cfg)
    assert f"AID was batch, alpha 8, relative, and is {now} for the rest" in caplog.text


def test_the_same_aid_by_other_keys_is_no_change(cfg, tmp_path, caplog):
    cfg.DISTILL.AID.PRESET = "PAPER"
    for keys in (
        "{ALPHA: 0.1, GRANULARITY: level, RELATIVE: False, RESCALE: False}",
        "{PRESET: PAPER, ALPHA: 0.1, GRANULARITY: instance}",  # defaults of that time
    ):
        (tmp_path / "config.yaml").write_text(f"DISTILL: {{AID: {keys}}}")
        check_unchanged(cfg)
        assert not caplog.records


def test_an_empty_folder_can_be_resumed(cfg, tmp_path):
    cfg.OUTPUT_DIR = str(tmp_path / "new")
    check_unchanged(cfg)


def test_a_run_from_before_a_key_was_added_can_be_resumed(cfg, tmp_path):
    (tmp_path / "config.yaml").write_text("VERSION: 2")
    check_unchanged(cfg)
