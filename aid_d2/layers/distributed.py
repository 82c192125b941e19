"""Training on several GPUs."""

import torch
from torch import Tensor

from detectron2.utils import comm


def mean_over_gpus(values: Tensor) -> Tensor:
    """Mean of a tensor without gradient over all processes; itself where there is one."""
    if comm.get_world_size() > 1:
        values = values / comm.get_world_size()
        torch.distributed.all_reduce(values)
    return values
