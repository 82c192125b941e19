"""benchmarks/count_operators.py: what is counted."""

import torch
from count_operators import Operators


def test_what_computes_is_counted_and_views_are_not():
    with Operators() as mode:
        x = torch.ones(4, 4)  # one
        y = x.t().reshape(-1)[:8].view(2, 4)  # a copy, since the transpose is not contiguous
        z = y @ x  # one
        z.add_(1.0)  # one, in place
        torch.empty(3)
    assert mode.counts.total() == 4 and mode.counts["aten::mm"] == 1
