"""Blocks of README and docs: yaml has keys that exist, commands parse, Python runs.

`first_distillation.md` and the pages on writing a method or a wrapper are run whole elsewhere.
"""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.pages import ROOT, first_distillation_files
from suite import load_suite

from aid_d2.cli import command_parser
from aid_d2.config import find_config, load_config

WHOLE = {"first_distillation.md", "write_a_method.md", "write_a_wrapper.md"}
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.name not in WHOLE
]


def blocks(*languages):
    """Each block in one of the languages."""
    return [
        pytest.param(text, id=f"{page.name}-{i}")
        for page in PAGES
        for i, (language, text) in enumerate(
            re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
        )
        if language in languages
    ]


def commands(program):
    """The arguments of each command line of a program."""
    lines = [
        shlex.split(line, comments=True)
        for block in blocks("bash", "sh")
        for line in block.values[0].replace("\\\n", " ").splitlines()
    ]
    return [pytest.param(x[1:], id=" ".join(x)[:60]) for x in lines if x[:1] == [program]]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_has_known_keys(text, tmp_path):
    """Beside the files of the page "First distillation", which others build upon."""
    for name, content in first_distillation_files().items():
        (tmp_path / name).write_text(content)
    file = tmp_path / "own.yaml"
    file.write_text(text)
    if "groups:" in text:
        assert list(load_suite(str(file)).runs())
    else:
        load_config(str(file))


@pytest.mark.parametrize("arguments", commands("make"))
def test_make_has_the_target(arguments):
    assert re.search(rf"(?m)^{arguments[0]}:", (ROOT / "Makefile").read_text())


@pytest.mark.parametrize("arguments", commands("aid-d2"))
def test_a_command_parses(arguments):
    """And the config that it names is one of aid_d2, or the reader's own."""
    name, *rest = arguments
    config = getattr(command_parser(name).parse_args(rest), "config_file", None)
    if config and not config.startswith(("output/", "TEACHER")):
        find_config(config)


@pytest.mark.parametrize("arguments", commands("python"))
def test_the_script_is_there(arguments):
    """In the repository, or beside an exported file; else it is code, or a module."""
    script = arguments[0]
    assert script in ("-c", "-m", "run_onnx.py") or (ROOT / script).is_file()


@pytest.fixture
def folder(tmp_path, monkeypatch, small_cfg, build_seeded, rectangles):
    """A folder with a student, untrained, and a photo."""
    data = {"DATASETS.COCO_JSON": [["blocks", *rectangles[1:]]], "DATASETS.TRAIN": ("blocks",)}
    cfg = small_cfg("GFL", data)
    student = tmp_path / "output" / "student"
    student.mkdir(parents=True)
    (student / "config.yaml").write_text(cfg.dump())
    model = build_seeded(cfg, 0)
    # Something is found everywhere.
    torch.nn.init.constant_(model.head.cls_score.bias, 2.0)
    torch.save({"model": model.state_dict()}, student / "model_final.pth")
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((64, 96, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs" / "deploy.md"], ids=lambda x: x.name
)
def test_python_runs(page: Path, folder, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    variables = {}
    exec(code, variables)
    assert len(variables["found"]) > 0
    if "print(" in code:
        assert capsys.readouterr().out.startswith("['")
