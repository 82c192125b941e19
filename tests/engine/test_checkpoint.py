"""A failure while a checkpoint is written leaves the earlier ones whole."""

import pytest
import torch
from torch import nn

from aid_d2.engine.checkpoint import WholeCheckpointer


class FullDisk:
    """What cannot be written."""

    def __reduce__(self):
        raise OSError("No space left on device")


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path):
    model = nn.Linear(2, 2)
    checkpointer = WholeCheckpointer(model, str(tmp_path))
    checkpointer.save("model_final", iteration=1)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model_final", iteration=FullDisk())
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model_0000002", iteration=FullDisk())
    assert {p.name for p in tmp_path.iterdir()} == {"model_final.pth", "last_checkpoint"}
    other = nn.Linear(2, 2)
    assert WholeCheckpointer(other, str(tmp_path)).resume_or_load("") == {"iteration": 1}
    assert torch.equal(other.weight, model.weight)


def test_half_of_the_tensors_may_be_left_out(tmp_path):
    model = nn.Linear(2, 2)
    path = tmp_path / "file.pth"
    torch.save({"model": {"weight": torch.ones(2, 2), "bias": torch.ones(5)}}, path)
    WholeCheckpointer(model).load(str(path))
    assert torch.equal(model.weight, torch.ones(2, 2))
    torch.save({"model": {"weight": torch.ones(3, 2), "bias": torch.ones(5)}}, path)
    with pytest.raises(ValueError, match="2 of its 2 tensors"):
        WholeCheckpointer(model).load(str(path))
