import importlib.util
from pathlib import Path

import pytest
from samples import kitti_line

from aid_d2.data.kitti import read_splits

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_kitti.py"


@pytest.fixture
def prepare(monkeypatch):
    """Returns prepare(*command line arguments)."""
    spec = importlib.util.spec_from_file_location("prepare_kitti", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args):
        monkeypatch.setattr("sys.argv", ["prepare_kitti.py", *map(str, args)])
        module.main()

    return run


def test_writes_the_default_split_and_counts(write_kitti, prepare, capsys):
    label = kitti_line("Car", (1, 1, 9, 9)) * 2 + kitti_line("DontCare", (1, 1, 9, 9))
    root = write_kitti({f"{i:06d}": label for i in range(10)})
    default = read_splits(root)
    prepare("--root", root)
    assert (root / "ImageSets/train.txt").read_text().split() == default["train"]
    assert read_splits(root) == default
    train, val = capsys.readouterr().out.splitlines()
    assert train.startswith("train: 8 frames; Car 16,") and train.endswith("DontCare 8")
    assert val.startswith("val: 2 frames; Car 4,") and val.endswith("DontCare 2")


def test_existing_split_needs_force(write_kitti, prepare):
    root = write_kitti({f"{i:06d}": "" for i in range(10)})
    prepare("--root", root)
    kept = read_splits(root)
    with pytest.raises(SystemExit, match="train.txt.*would be overwritten; --force"):
        prepare("--root", root, "--train-fraction", 0.5)
    assert read_splits(root) == kept
    prepare("--root", root, "--train-fraction", 0.5, "--force")
    assert len(read_splits(root)["train"]) == 5


def test_faults_of_the_tree_stop_it(write_kitti, prepare, tmp_path):
    root = write_kitti({"000000": "", "000001": "Car 1\n"})
    with pytest.raises(SystemExit, match="000001.txt:1: 2 fields, expected 15"):
        prepare("--root", root)
    assert not (root / "ImageSets").exists()
    with pytest.raises(SystemExit, match="No such directory"):
        prepare("--root", tmp_path / "nowhere")
