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
from helpers.pages import ROOT

from aid_d2.cli import _load, _parser
from aid_d2.config import find_config, load_config

WHOLE = {"first_distillation.md", "write_a_method.md", "write_a_wrapper.md"}
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.name not in WHOLE
]


def blocks(*languages):
    """(page, block) of each block in one of the languages."""
    return [
        pytest.param(text, id=f"{page.name}-{i}")
        for page in PAGES
        for i, (language, text) in enumerate(
            re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
        )
        if language in languages
    ]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_has_known_keys(text, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    load_config(str(file))


@pytest.mark.parametrize("text", blocks("bash", "sh"))
def test_commands_parse(text):
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert re.search(rf"(?m)^{arguments[0]}:", (ROOT / "Makefile").read_text())
        elif program == "aid-d2":
            name, *rest = arguments
            args = _parser(name, _load(name)).parse_args(rest)
            config = getattr(args, "config_file", "")
            if not config.startswith(("output/", "TEACHER")) and config:
                find_config(config)
        elif program == "python" and arguments[0].startswith(("benchmarks/", "tools/")):
            for path in (x for x in arguments if x.endswith((".py", ".yaml"))):
                assert (ROOT / path).is_file()


@pytest.fixture
def folder(tmp_path, monkeypatch, small_cfg, build_seeded, rectangles):
    """A folder with a student, untrained, and a photo."""
    data = {"DATASETS.COCO_JSON": [["blocks", *rectangles[1:]]], "DATASETS.TRAIN": ("blocks",)}
    cfg = small_cfg("GFL", data)
    student = tmp_path / "output" / "student"
    student.mkdir(parents=True)
    (student / "config.yaml").write_text(cfg.dump())
    model = build_seeded(cfg, 0)
    # One class everywhere.
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
