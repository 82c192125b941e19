"""Train or evaluate a plain or a distilled detector, with Detectron2's usual arguments."""

import argparse

from ..engine import argument_parser
from ..engine import run as launch

PARENT = argument_parser()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PARENT has them all."""


def run(args: argparse.Namespace) -> None:
    """Train or evaluate, on as many GPUs as are asked for."""
    launch(args)
