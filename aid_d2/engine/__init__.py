"""Training and evaluation from a command line: what train_net.py is a thin call of."""

from .command import evaluate, main, run, setup
from .trainer import Trainer

__all__ = ["Trainer", "evaluate", "main", "run", "setup"]
