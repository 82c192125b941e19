"""Whatever is in a config or a checkpoint, the only errors are ours, and files stay as they are."""

import pickle
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.mutations import examples, is_ours, mutated_bytes
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aid_d2.config import load_config
from aid_d2.engine.checkpoint import WholeCheckpointer

_YAML = """_BASE_: base.yaml
PLUGINS: []
MODEL:
  META_ARCHITECTURE: DistilledDetector
  FPN: {OUT_CHANNELS: 64}
DISTILL:
  METHODS: [PKD, CrossKD]
  WEIGHT: 2
  AID: {ALPHA: 0.5, RELATIVE: True}
INPUT: {MIN_SIZE_TRAIN: [128, 160]}
"""
_KEYS = ["_BASE_", "PLUGINS", "VERSION", "MODEL", "MODEL.FPN", "DISTILL.METHODS", "SOLVER.BASE_LR"]
_KINDS = (ValueError, FileNotFoundError, ModuleNotFoundError)
_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def _load(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.yaml"
        path.write_bytes(content)
        (path.parent / "base.yaml").write_text("SOLVER: {BASE_LR: 0.02}\n")
        try:
            load_config(str(path))
        except _KINDS as error:
            assert is_ours(error, folder, _KINDS), f"not our message: {error!r}"
        assert path.read_bytes() == content


@examples
@given(mutated_bytes(_YAML.encode()))
def test_config_with_other_bytes(content):
    _load(content)


@examples
@given(st.dictionaries(st.sampled_from(_KEYS), _value, max_size=2))
def test_config_with_other_values(values):
    config = yaml.safe_load(_YAML)
    for key, value in values.items():
        *path, leaf = key.split(".")
        node = config
        for name in path:
            node = node.setdefault(name, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[leaf] = value
    _load(yaml.safe_dump(config).encode())


def _checkpoint(suffix: str) -> bytes:
    model = nn.Linear(2, 2).state_dict()
    if suffix == "pkl":
        arrays = {key: value.numpy().astype(np.float32) for key, value in model.items()}
        return pickle.dumps({"model": arrays, "__author__": "x", "matching_heuristics": True})
    file = BytesIO()
    torch.save({"model": model, "iteration": 4, "class_names": ["car"]}, file)
    return file.getvalue()


@examples
@given(st.data())
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_checkpoint_with_other_bytes(suffix, data):
    content = data.draw(mutated_bytes(_checkpoint(suffix)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{suffix}"
        path.write_bytes(content)
        try:
            WholeCheckpointer(nn.Linear(2, 2)).load(str(path))
        except ValueError as error:
            assert is_ours(error, folder), f"not our message: {error!r}"
        assert path.read_bytes() == content
