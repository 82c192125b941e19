"""benchmarks/profile_step.py: its rows and ratios, and that an added cost shows up."""

import json
import resource
from pathlib import Path

import numpy as np
import profile_step
import pytest
from helpers.training import DEFAULT_AID

from aid_d2 import load_config
from aid_d2.aid import AID, GRANULARITIES
from aid_d2.distillers.attention_guided import AttentionGuided
from detectron2.modeling.meta_arch.retinanet import RetinaNet


@pytest.fixture(scope="module")
def tool():
    return profile_step


@pytest.fixture
def config(distilled_cfg, tmp_path):
    (tmp_path / "distilled.yaml").write_text(distilled_cfg("RetinaNet").dump())
    return tmp_path / "distilled.yaml"


def run(tool, monkeypatch, config, *more):
    arguments = ["--config-file", str(config), "--size", "64", "64", "--images", "1"]
    output = config.with_name("cost.json")
    arguments += ["--repeats", "1", "--objects", "2", "--json", str(output), *more]
    monkeypatch.setattr("sys.argv", ["profile_step.py", *arguments])
    # A process for each row would take most of the time.
    monkeypatch.setattr(tool, "peak_memory", lambda case: 100.0)
    tool.main()
    return json.loads(output.read_text())


@pytest.mark.parametrize(
    "kind,expected",
    [
        ("method", ["AttentionGuided", "NonLocal", "AttentionGuided + NonLocal"]),
        (
            "granularity",
            ["without AID", *(f"AID, {x}" for x in GRANULARITIES)],
        ),
        ("objects", [f"1 x 64x64, {x} objects" for x in (1, 10, 50, 200)]),
        ("images", ["1 x 64x64, 2 objects", "2 x 64x64, 2 objects"]),
        ("size", [f"1 x {x}x{x}, 2 objects" for x in (32, 64, 128)]),
    ],
)
def test_rows_and_their_ratios(tool, monkeypatch, capsys, config, kind, expected):
    report = run(tool, monkeypatch, config, "--variants", kind)
    assert list(report["rows"]) == expected
    printed = capsys.readouterr().out
    for name, row in report["rows"].items():
        step, student = row["distilled_step_s"], row["student_step_s"]
        floor = student + row["teacher_forward_s"]
        assert row["ratio_to_floor"] == pytest.approx(step / floor)
        assert row["ratio_to_student"] == pytest.approx(step / student)
        assert row["peak_memory_ratio"] == 1
        methods = {x for x in ("AttentionGuided", "NonLocal") if x in name}
        methods = methods or {"AttentionGuided", "NonLocal"}
        assert set(row["parts_s"]) == {"student", "teacher", "weights"} | methods
        assert all(x > 0 for x in row["parts_s"].values())
        assert name in printed


def test_granularities_are_those_of_their_names(tool, distilled_cfg):
    cfg = distilled_cfg("RetinaNet", {**DEFAULT_AID, "DISTILL.AID.PRESET": "PAPER"})
    rows = tool.variants(tool.Case(cfg, 64, 64, images=1, objects=2), "granularity")
    for name, case in rows.items():
        aid = AID.from_config(case.cfg.DISTILL.AID)
        assert name == (f"AID, {aid.granularity}" if aid.enabled else "without AID")


@pytest.mark.parametrize("objects", [1, 20])
def test_a_box_head_has_the_full_batch_of_training(tool, objects):
    config = Path(tool.__file__).parents[1] / "configs/kitti/faster_rcnn_R_50_aid.yaml"
    cfg = load_config(str(config), ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 150
    case = tool.Case(cfg, 128, 128, images=1, objects=objects)
    model, step = tool.stepper(case.student)
    boxes = []
    box_head = model.student.roi_heads.box_head
    box_head.register_forward_pre_hook(lambda _, pooled: boxes.append(len(pooled[0])))
    step()
    assert boxes == [150]


def test_a_setting_is_compared_with_the_student_that_has_it_too(tool, monkeypatch, config):
    """Times that were measured apart are never equal to the last digit."""
    rows = run(tool, monkeypatch, config, "--variants", "setting")["rows"]
    base, students = rows.pop("as configured"), {}
    for name, row in rows.items():
        students.setdefault(row["student_step_s"], []).append(name)
        assert row["distilled_step_s"] != base["distilled_step_s"]
    assert students.pop(base["student_step_s"]) == [
        "DISTILL.PRECISION float32",
    ]
    assert list(students.values()) == [
        ["SOLVER.CHANNELS_LAST True"],
        ["SOLVER.BF16 True"],
        ["SOLVER.CHANNELS_LAST True SOLVER.BF16 True"],
    ]
    exact = rows["DISTILL.PRECISION float32"]
    assert exact["teacher_forward_s"] == exact["teacher_forward_float32_s"]
    assert exact["teacher_forward_s"] == base["teacher_forward_float32_s"]


def test_a_cost_that_is_added_shows_up_where_it_is(tool, monkeypatch, config):
    """On a clock that a student's step moves by 2 seconds, and AttentionGuided by 5."""
    now = [0.0]

    def charge(owner, seconds):
        forward = owner.forward

        def slower(*args):
            now[0] += seconds
            return forward(*args)

        monkeypatch.setattr(owner, "forward", slower)

    charge(RetinaNet, 2)
    charge(AttentionGuided, 5)
    monkeypatch.setattr(tool.time, "perf_counter", lambda: now[0])
    rows = run(tool, monkeypatch, config)["rows"]
    expected = {"AttentionGuided": 7, "NonLocal": 2, "AttentionGuided + NonLocal": 7}
    for name, seconds in expected.items():
        assert rows[name]["distilled_step_s"] == seconds
        assert rows[name]["student_step_s"] == 2 and rows[name]["teacher_forward_s"] == 0
        assert rows[name]["ratio_to_floor"] == seconds / 2


def test_medians_are_of_steps_taken_in_turn(tool, monkeypatch):
    """By a clock that only the steps move."""
    now, order = [0.0], []

    def step(name, costs):
        remaining = iter(costs)

        def take():
            order.append(name)
            now[0] += next(remaining)

        return take

    monkeypatch.setattr(tool.time, "perf_counter", lambda: now[0])
    steps = {"a": step("a", [9, 1, 2, 6]), "b": step("b", [9, 5, 5, 4])}
    assert tool.interleave(steps, repeats=3) == {"a": 2, "b": 5}
    assert order == ["a", "b"] * 4


def test_memory_of_a_step_is_that_of_a_process_of_its_own(tool, config, monkeypatch):
    """Whatever this process has used before."""
    monkeypatch.setattr("sys.argv", ["profile_step.py", "--config-file", str(config)])
    case = tool.Case(tool.config_of(tool.parse_arguments()), 64, 64, images=1, objects=2)
    np.ones(200_000_000)  # 1.6 GB
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 100 < tool.peak_memory(case) < mine - 500


def test_a_plain_config_is_refused(tool, small_cfg, monkeypatch, tmp_path):
    (tmp_path / "plain.yaml").write_text(small_cfg("RetinaNet").dump())
    with pytest.raises(ValueError, match="plain.yaml is no distilled detector"):
        run(tool, monkeypatch, tmp_path / "plain.yaml")
