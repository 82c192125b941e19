"""Controlled comparisons of training runs: what a suite file says, and what its results show."""

from .metrics import read_metrics
from .report import write_report
from .suite import Run, Suite, load_suite

__all__ = ["Run", "Suite", "load_suite", "read_metrics", "write_report"]
