"""The command `aid-d2`: errors in one line, names that are misspelt, modules of the user."""

import json
import sys
from importlib import metadata

import pytest

from aid_d2.cli import main
from aid_d2.config import CONFIG_EXTENSIONS, get_config_file, load_config
from aid_d2.modeling.teacher import load_teacher_config
from detectron2 import model_zoo

RETINANET = "kitti/retinanet_R_50.yaml"


def one_line(capsys, *arguments):
    """The only line that a command with wrong input prints on stderr."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_the_command_is_installed():
    (script,) = metadata.entry_points(group="console_scripts", name="aid-d2")
    assert script.load() is main


def test_the_commands_are_listed(capsys):
    assert main([]) == main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in ("train", "trust", "pseudo-label", "doctor"):
        assert printed.count(f"  aid-d2 {name} ") == 2


@pytest.mark.parametrize(
    ["written", "meant"],
    [("DATASETS.TRAIM", "DATASETS.TRAIN"), ("DISTILL.AID.GRANULARTY", "DISTILL.AID.GRANULARITY")],
)
def test_a_misspelt_key(capsys, tmp_path, written, meant):
    line = one_line(capsys, "train", "--config-file", RETINANET, written, "x")
    assert f"{written}. Did you mean '{meant}'?" in line
    *nodes, key = written.split(".")
    content = {key: "x"}
    for node in reversed(nodes):
        content = {node: content}
    (tmp_path / "own.yaml").write_text(json.dumps(content))
    line = one_line(capsys, "train", "--config-file", str(tmp_path / "own.yaml"))
    assert "own.yaml: " in line and f"Did you mean '{meant}'?" in line


def test_a_misspelt_command(capsys):
    assert main(["tran"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().out


def test_a_missing_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("runtime", "export", "benchmark"):
        monkeypatch.delitem(sys.modules, f"aid_d2.deploy.{name}", raising=False)
    monkeypatch.delitem(sys.modules, "aid_d2.commands.benchmark", raising=False)
    line = one_line(capsys, "benchmark", "--images", ".")
    assert "onnxruntime" in line and "pip install aid_d2[export]" in line


def test_a_misspelt_data_set(capsys, tmp_path):
    options = ("DATASETS.TRAIN", "('kiti_train',)", "OUTPUT_DIR", str(tmp_path))
    assert main(["train", "--config-file", RETINANET, "MODEL.DEVICE", "cpu", *options]) == 2
    assert "'kiti_train'. Did you mean 'kitti_train'?" in capsys.readouterr().err


def test_a_misspelt_method(distilled_cfg, build_seeded):
    cfg = distilled_cfg("RetinaNet", {"DISTILL.METHODS": ("Pkd",)})
    with pytest.raises(ValueError, match="no method 'Pkd'. Did you mean 'PKD'"):
        build_seeded(cfg, 0)


def test_a_file_that_is_no_yaml(capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("MODEL: {A: [")
    assert main(["train", "--config-file", str(tmp_path / "own.yaml")]) == 2
    assert "own.yaml: " in capsys.readouterr().err


def test_traceback_is_shown_on_demand():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        main(["train", "--traceback", "--config-file", "nowhere.yaml"])


def test_configs_that_aid_d2_comes_with(tmp_path, monkeypatch):
    """They are found from any folder; a file of the user's comes first."""
    monkeypatch.chdir(tmp_path)
    packaged = load_config(get_config_file(RETINANET))
    assert load_config(RETINANET) == load_config(f"configs/{RETINANET}") == packaged
    (tmp_path / "kitti").mkdir()
    (tmp_path / RETINANET).write_text("SEED: 77")
    assert load_config(RETINANET).SEED == 77


def test_configs_of_the_model_zoo(tmp_path, monkeypatch):
    """By the name that they have there."""
    zoo = tmp_path / "zoo"
    (zoo / "COCO-Detection").mkdir(parents=True)
    (zoo / "COCO-Detection" / "own.yaml").write_text("SEED: 77")
    monkeypatch.setattr(model_zoo, "get_config_file", lambda name: str(zoo / name))
    assert load_config("COCO-Detection/own.yaml").SEED == 77


def test_a_model_zoo_without_configs_is_told(tmp_path, monkeypatch):
    """As that of Detectron2 v0.6 from its Python files."""
    monkeypatch.setattr(model_zoo, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="retinanet.yaml.*which comes without configs"):
        load_config("COCO-Detection/retinanet.yaml")
    (tmp_path / "configs").mkdir()
    with pytest.raises(FileNotFoundError, match="retinanet.yaml.*the installed Detectron2[.]$"):
        load_config("COCO-Detection/retinanet.yaml")


def test_the_teacher_may_be_a_config_of_aid_d2(distilled_cfg, tmp_path, monkeypatch):
    """From any folder, as `kitti/retinanet_R_50_aid.yaml` names it."""
    monkeypatch.chdir(tmp_path)
    key = {"DISTILL.TEACHER.CONFIG_FILE": "configs/kitti/retinanet_R_101.yaml"}
    assert load_teacher_config(distilled_cfg("RetinaNet", key)).MODEL.RESNETS.DEPTH == 101


def test_plugins(tmp_path, monkeypatch):
    """A module that the config names is imported before its keys are read."""
    (tmp_path / "my_project_keys.py").write_text(
        "from aid_d2.config import CONFIG_EXTENSIONS\n"
        "def extend(cfg): cfg.MODEL.MY_PROJECT_KEY = 1\n"
        "CONFIG_EXTENSIONS.append(extend)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("aid_d2.config.CONFIG_EXTENSIONS", list(CONFIG_EXTENSIONS))
    (tmp_path / "own.yaml").write_text("PLUGINS: [my_project_keys]\nMODEL: {MY_PROJECT_KEY: 2}\n")
    assert load_config(str(tmp_path / "own.yaml")).MODEL.MY_PROJECT_KEY == 2
    sys.modules.pop("my_project_keys")


def test_a_missing_plugin_is_named(capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("PLUGINS: [my_missing_module]\n")
    line = one_line(capsys, "train", "--config-file", str(tmp_path / "own.yaml"))
    assert "my_missing_module" in line


@pytest.mark.parametrize("base", ["kitti/gfl_R_50.yaml", "configs/kitti/gfl_R_50.yaml"])
def test_a_base_away_from_a_checkout_is_that_of_aid_d2(base, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {base}\nOUTPUT_DIR: elsewhere\n")
    cfg = load_config(str(path))
    assert cfg.MODEL.META_ARCHITECTURE == "GFL" and cfg.OUTPUT_DIR == "elsewhere"


def test_a_base_of_ones_own_comes_first_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("_BASE_: kitti/gfl_R_50.yaml\n")
    (tmp_path / "kitti").mkdir()
    (tmp_path / "kitti" / "gfl_R_50.yaml").write_text("OUTPUT_DIR: own\n")
    assert load_config(str(path)).OUTPUT_DIR == "own"
    path.write_text("_BASE_: kitti/none.yaml\n")
    with pytest.raises(FileNotFoundError, match="kitti/none.yaml"):
        load_config(str(path))
