"""Training and evaluation from a command line: what train_net.py is a thin call of."""

from .command import argument_parser, evaluate, main, run, setup
from .trainer import Trainer

__all__ = ["Trainer", "argument_parser", "evaluate", "main", "run", "setup"]
