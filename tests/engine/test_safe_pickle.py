"""A hostile pickle runs nothing, wherever a file is loaded."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from aid_d2.engine.checkpoint import WholeCheckpointer
from aid_d2.modeling.safe_pickle import TRUST


class Hostile:
    """Makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return str(path)


def test_model_weights(tmp_path):
    path = write(tmp_path / "model.pkl", {"model": Hostile(tmp_path / "made"), "__author__": "x"})
    with pytest.raises(ValueError, match="model.pkl.*mkdir"):
        WholeCheckpointer(nn.Linear(2, 2)).load(path)
    assert not (tmp_path / "made").exists()


def test_the_teachers_weights(tmp_path, distilled_cfg, build_seeded):
    path = write(tmp_path / "teacher.pkl", {"model": Hostile(tmp_path / "made")})
    with pytest.raises(ValueError, match="teacher.pkl.*mkdir"):
        build_seeded(distilled_cfg("RetinaNet", {"DISTILL.TEACHER.WEIGHTS": path}), 0)
    assert not (tmp_path / "made").exists()


def test_a_file_of_torch(tmp_path, monkeypatch):
    """Only who trusts the author runs its code."""
    path = tmp_path / "model.pth"
    model = nn.Linear(2, 2)
    torch.save({"model": model.state_dict(), "more": Hostile(tmp_path / "made")}, path)
    with pytest.raises(ValueError, match="model.pth asks for .*mkdir.*--trust-checkpoint"):
        WholeCheckpointer(model).load(str(path))
    assert not (tmp_path / "made").exists()
    monkeypatch.setenv(TRUST, "1")
    WholeCheckpointer(model).load(str(path))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut short"])
def test_a_broken_file_is_named_and_so_is_a_whole_one(tmp_path, content):
    (tmp_path / "model_0000009.pth").write_bytes(content)
    (tmp_path / "model_0000004.pth").touch()
    with pytest.raises(ValueError, match="model_0000009.pth is broken.*holds model_0000004.pth"):
        WholeCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "model_0000009.pth"))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_are_loaded(tmp_path, protocol):
    weight = np.arange(4, dtype=np.float32).reshape(2, 2)
    path = tmp_path / "model.pkl"
    content = {"model": {"weight": weight, "bias": np.ones(2, np.float32)}, "__author__": "x"}
    content["matching_heuristics"] = True
    path.write_bytes(pickle.dumps(content, protocol))
    model = nn.Linear(2, 2)
    WholeCheckpointer(model).load(str(path))
    assert torch.equal(model.weight, torch.as_tensor(weight))


def test_a_file_that_cannot_be_downloaded():
    with pytest.raises(OSError, match="none.pkl cannot be downloaded: .*another machine"):
        WholeCheckpointer(nn.Linear(2, 2)).load("http://127.0.0.1:9/none.pkl")
