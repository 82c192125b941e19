"""Teachers and students of LazyConfig."""

import re
from pathlib import Path

import pytest
import torch
from helpers.training import DEFAULT_AID, assert_equal, step

from aid_d2 import DistilledDetector
from aid_d2.cli import main
from aid_d2.modeling.teacher import Teacher
from detectron2.config import LazyConfig, instantiate

ROOT = Path(__file__).parents[2]
# What the yaml teacher of the tests is, by LazyConfig.
SMALL = """
model = retinanet(depth=18, channels=16, num_classes=3)
model.head.conv_dims = [16]
model.head.num_anchors = 3
model.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.pixel_mean = [103.530, 116.280, 123.675]
"""


@pytest.fixture
def lazy_file(tmp_path):
    text = (ROOT / "examples" / "lazyconfig" / "retinanet.py").read_text()
    path = tmp_path / "teacher.py"
    path.write_text(text[: text.index("\nmodel =")] + SMALL)
    return path


@pytest.fixture(params=["py", "saved yaml"])
def config_file(request, lazy_file):
    if request.param == "py":
        return str(lazy_file)
    saved = lazy_file.with_suffix(".yaml")
    LazyConfig.save(LazyConfig.load(str(lazy_file)), str(saved))
    return str(saved)


def test_as_the_yaml_teacher_of_the_same_weights(
    distilled_cfg, build_seeded, make_batch, config_file
):
    """Losses and gradients of a step, bit for bit."""
    results = []
    for files in ({}, {"DISTILL.TEACHER.CONFIG_FILE": config_file}):
        model = build_seeded(distilled_cfg("RetinaNet", files), 0)
        losses = step(model, make_batch())
        results.append({name: x.detach() for name, x in losses.items()})
    assert_equal(*results)


def test_the_page(distilled_cfg, build_seeded, make_batch, lazy_file, teachers, monkeypatch):
    """Its code distils a student of LazyConfig, and its losses are those of the yaml."""
    page = (ROOT / "docs" / "training.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    weights = teachers["RetinaNet"]["DISTILL.TEACHER.WEIGHTS"]
    for old, new in (("teacher.py", str(lazy_file)), ("teacher.pth", weights), ("cuda", "cpu")):
        code = code.replace(f'"{old}"', repr(new))
    exact = "'DISTILL.PRECISION', 'float32'"
    code = code.replace('"DISTILL.METHODS"', f'{exact}, "DISTILL.METHODS"')
    names = {"model": LazyConfig.load(str(lazy_file)).model}
    exec(code, names)
    torch.manual_seed(0)
    lazy = instantiate(names["model"])
    model = build_seeded(
        distilled_cfg("RetinaNet", {"DISTILL.METHODS": ("PKD",), **DEFAULT_AID}), 0
    )
    lazy.student.load_state_dict(model.student.state_dict())
    ours, theirs = (step(x, make_batch()) for x in (lazy, model))
    assert_equal(*({k: v.detach() for k, v in x.items()} for x in (ours, theirs)))


def test_a_teacher_of_two_students(small_cfg, distilled_cfg, build_seeded, make_batch):
    """Each has its own methods, and its random numbers are those of the plain student."""
    cfg = distilled_cfg("RetinaNet", {"DISTILL.METHODS": ("CrossKD",)})
    cfg.merge_from_list(["DISTILL.CROSSKD.RETINANET.POSITION", 1])
    other = cfg.clone()
    other.DISTILL.METHODS = ("PKD",)
    teacher = Teacher.from_config(cfg)
    first, second = (build_seeded(small_cfg("RetinaNet"), seed) for seed in (0, 1))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = [
        DistilledDetector.of(first, teacher, cfg),
        DistilledDetector.of(second, teacher, other),
    ]
    assert torch.equal(torch.get_rng_state(), before)
    for model, method in zip(models, ("CrossKD", "PKD")):
        assert any(name.startswith(f"loss_{method}_") for name in step(model, make_batch()))


def test_a_file_without_model(tmp_path, distilled_cfg, build_seeded):
    (tmp_path / "empty.py").write_text("x = 1")
    cfg = distilled_cfg("RetinaNet", {"DISTILL.TEACHER.CONFIG_FILE": str(tmp_path / "empty.py")})
    with pytest.raises(ValueError, match="empty.py is a LazyConfig without `model`"):
        build_seeded(cfg, 0)


def test_weights_that_do_not_fit(lazy_file, tmp_path):
    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth.*do not fit"):
        Teacher.load_lazy(str(lazy_file), str(tmp_path / "other.pth"), "cpu")


def test_complexity_wants_a_yaml(lazy_file, distilled_cfg, tmp_path, capsys):
    cfg = distilled_cfg("RetinaNet", {"DISTILL.TEACHER.CONFIG_FILE": str(lazy_file)})
    (tmp_path / "student.yaml").write_text(cfg.dump())
    assert main(["complexity", str(tmp_path / "student.yaml")]) == 2
    assert "is a LazyConfig" in capsys.readouterr().err
