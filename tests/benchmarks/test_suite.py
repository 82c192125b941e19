"""Suite files: what they mean, that their rows are comparable, and errors in them."""

import copy
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from suite import load_suite

from aid_d2.data import register_coco_json
from aid_d2.distillers import DISTILLER_REGISTRY
from aid_d2.engine import Trainer
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.utils.env import seed_all_rng

SUITES = sorted(str(x) for x in Path("benchmarks/suites").glob("*.yaml"))
PLAIN = "configs/highway/retinanet_R_18_C64.yaml"
DISTILLED = "configs/highway/retinanet_R_18_C64_pkd.yaml"
SUITE = {
    "seeds": [3, 2],
    "opts": {"SOLVER.MAX_ITER": 5},
    "groups": {
        "good": {
            "teacher": {"config": "configs/highway/retinanet_R_18.yaml"},
            "baselines": ["student"],
            "rows": {
                "student": {"config": PLAIN},
                "pkd": {"config": DISTILLED, "opts": {"DISTILL.WEIGHT": 2.0}},
            },
        },
        "bad": {
            "teacher": {
                "config": "configs/highway/retinanet_R_18.yaml",
                "opts": {"SOLVER.MAX_ITER": 1},
            },
            "baselines": ["student"],
            "rows": {"student": {"config": PLAIN}, "pkd": {"config": DISTILLED}},
        },
    },
}


def changed(path, value):
    """The suite with one entry changed; None removes it."""
    suite = copy.deepcopy(SUITE)
    *parents, last = path
    node = suite
    for key in parents:
        node = node[key]
    node[last] = value
    if value is None:
        del node[last]
    return suite


@pytest.fixture
def load(tmp_path):
    def call(suite):
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
        return load_suite(str(tmp_path / "suite.yaml"))

    return call


def test_runs(load):
    runs = list(load(SUITE).runs())
    # The student of both groups is one and the same run.
    assert [(x.row, x.seed, x.group) for x in runs] == [
        ("teacher", 1, "good"),
        ("teacher", 1, "bad"),
        ("student", 2, "good"),
        ("pkd", 2, "good"),
        ("pkd", 2, "bad"),
        ("student", 3, "good"),
        ("pkd", 3, "good"),
        ("pkd", 3, "bad"),
    ]
    good, bad = runs[3], runs[4]
    assert good.teacher is runs[0] and bad.teacher is runs[1]
    assert runs[2].teacher is None
    assert good.cfg.DISTILL.WEIGHT == 2.0 and bad.cfg.DISTILL.WEIGHT == 1.0
    assert [x.cfg.SOLVER.MAX_ITER for x in runs[:3]] == [5, 1, 5]
    assert [x.cfg.SEED for x in runs] == [1, 1, 2, 2, 2, 3, 3, 3]
    assert len({x.folder for x in runs}) == len(runs)


def test_paths_are_relative_to_the_suite(load, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("_BASE_: highway/retinanet_R_18_C64.yaml\nSEED: 5\n")
    monkeypatch.chdir("/")
    suite = load(changed(["groups", "good", "rows", "student", "config"], "mine.yaml"))
    assert {x.config for x in suite.runs() if x.row == "student" and x.group == "good"} == {
        str(tmp_path / "mine.yaml")
    }


def test_a_student_does_not_start_from_its_teachers_weights(load):
    with pytest.raises(ValueError, match="good.student has the seed 1, which is the teachers'"):
        load(changed(["seeds"], [2, 1]))


def test_options_of_a_group_are_its_students(load):
    suite = load(changed(["groups", "good", "opts"], {"SOLVER.MAX_ITER": 7}))
    iterations = {(x.group, x.row): x.cfg.SOLVER.MAX_ITER for x in suite.runs()}
    assert iterations == {
        ("good", "teacher"): 5,
        ("bad", "teacher"): 1,
        ("good", "student"): 7,
        ("good", "pkd"): 7,
        ("bad", "student"): 5,
        ("bad", "pkd"): 5,
    }


def test_a_row_may_have_seeds_of_its_own(load):
    suite = load(changed(["groups", "good", "rows", "pkd", "seeds"], [2]))
    assert [(x.row, x.seed) for x in suite.groups[0].runs] == [
        ("teacher", 1),
        ("student", 3),
        ("student", 2),
        ("pkd", 2),
    ]


def test_hash_changes_with_whatever_the_result_depends_on(load):
    def hashes(suite):
        return {(x.group, x.row, x.seed): x.config_hash for x in load(suite).runs()}

    before = hashes(SUITE)
    for key, value in (("opts", {"SOLVER.BASE_LR": 0.1}), ("weights", __file__)):
        teacher = hashes(changed(["groups", "good", "teacher", key], value))
        different = {key for key in before if before[key] != teacher[key]}
        assert different == {("good", "teacher", 1), ("good", "pkd", 2), ("good", "pkd", 3)}
    for used in ({"DISTILL.WEIGHT": 3.0}, {"DISTILL.PKD.ONE_STAGE.WEIGHT": 3.0}):
        row = hashes(changed(["groups", "bad", "rows", "pkd", "opts"], used))
        assert {key for key in before if before[key] != row[key]} == {
            ("bad", "pkd", 2),
            ("bad", "pkd", 3),
        }


def test_hash_is_not_of_methods_that_a_run_does_not_use(load, monkeypatch):
    before = [x.config_hash for x in load(SUITE).runs()]
    added = type("Added", (), {"config": staticmethod(lambda: CfgNode({"WEIGHT": 1.0}))})
    monkeypatch.setitem(DISTILLER_REGISTRY._obj_map, "Added", added)
    assert [x.config_hash for x in load(SUITE).runs()] == before


@pytest.mark.parametrize(
    "path,value,message",
    [
        (["seeds"], None, "the suite has .*'groups', 'opts'.; it needs"),
        (["groups", "good", "row"], {}, "good has .*'row'"),
        (
            ["groups", "good", "rows", "pkd", "config"],
            "no.yaml",
            "good.pkd: There is no config file no.yaml",
        ),
        (["groups", "good", "baselines"], ["zhang"], "good has no row 'zhang'"),
        (["groups", "good", "teacher"], None, "good.pkd is distilled and has no teacher"),
        (["groups", "good", "teacher", "weights"], "no.pth", "good.teacher has no file no.pth"),
        (["groups", "good", "rows", "teacher"], {"config": PLAIN}, "good has a row 'teacher'"),
        (["seeds"], 2, "the suite has seeds 2; it needs a list"),
        (["seeds"], [2, 2], r"the suite has seeds \[2, 2\]; it needs a list of different"),
        (
            ["groups", "good", "rows", "pkd", "seeds"],
            [],
            r"good.pkd has seeds \[\]; it needs a list",
        ),
        (["groups"], ["good"], "groups is .'good'.; it needs a name"),
        (["opts"], {"DATASETS.TEST": ("a", "b")}, "good.teacher has DATASETS.TEST .*needs one"),
        (["gains"], [{"of": "pkd"}], "an entry of gains has .'of'.; it needs"),
        (["gains"], [{"of": "pkd", "over": "zhang"}], "no group has a teacher and both rows"),
        (["groups", "good", "teacher", "seeds"], [1], "good.teacher has .*'seeds'"),
        (
            ["groups", "good", "rows", "pkd", "opts"],
            {"SOLVER.BASE_LR": 0.1},
            "'student' and 'pkd' of good differ in SOLVER",
        ),
        (
            ["groups", "good", "rows", "pkd", "opts"],
            {"MODEL.FPN.OUT_CHANNELS": 32},
            "'student' and 'pkd' of good differ in MODEL",
        ),
    ],
    ids=lambda x: None,
)
def test_errors_are_named(load, path, value, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(changed(path, value))


@pytest.mark.parametrize("path", SUITES)
def test_suites_of_the_project(path, load):
    content = yaml.safe_load(Path(path).read_text())
    for group in content["groups"].values():
        if "weights" in group.get("teacher", {}):
            group["teacher"]["weights"] = path  # any file that is there
    suite = load(content)
    assert list(suite.runs())
    for group in suite.groups:
        assert group.baselines


def test_rows_start_from_equal_weights_and_see_equal_batches(small_cfg, distilled_cfg, rectangles):
    """For one seed: what a student trains on does not depend on how it is distilled."""
    data = {
        "DATASETS.COCO_JSON": [["suite_rectangles", *rectangles[1:]]],
        "DATASETS.TRAIN": ("suite_rectangles",),
        "INPUT.MIN_SIZE_TRAIN": (48, 64),
        "SOLVER.IMS_PER_BATCH": 2,
        "DATALOADER.NUM_WORKERS": 0,
    }
    rows = [
        small_cfg("RetinaNet", data),
        distilled_cfg("RetinaNet", {**data, "DISTILL.AID.ENABLED": False}),
        distilled_cfg("RetinaNet", {**data, "DISTILL.METHODS": ("MGD", "GID")}),
    ]
    seen = []
    for cfg in rows:
        register_coco_json(cfg.DATASETS.COCO_JSON)
        seed_all_rng(3)
        model = Trainer.build_model(cfg)
        weights = getattr(model, "student", model).state_dict()
        batches = list(islice(build_detection_train_loader(cfg), 4))
        seen.append((weights, [x["image"] for batch in batches for x in batch]))
    (weights, images), *others = seen
    for other_weights, other_images in others:
        assert all(torch.equal(x, other_weights[name]) for name, x in weights.items())
        assert all(map(torch.equal, images, other_images))
