"""The command `aid-d2`: one module of `aid_d2.commands` for each of its commands."""

import argparse
import ast
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import commands
from .extras import EXTRAS
from .suggestions import did_you_mean

# What a user can mend, and a message explains.
USER_ERRORS = (
    ValueError,
    OSError,
    NotImplementedError,
    ModuleNotFoundError,
    FloatingPointError,
    MemoryError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: its name and arguments; those of the command line if None.

    Returns:
        the exit status: 2 for wrong input, else the command's own, which is 0 for success.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name not in command_names():
        hint = did_you_mean(name, command_names())
        print(f"aid-d2: there is no command {name!r}.{hint}\n{_overview()}")
        return 2
    # Plugins are found in the working directory too.
    sys.path.append(os.getcwd())
    try:
        args = command_parser(name).parse_args(rest)
        return _load(name).run(args) or 0
    except USER_ERRORS as error:
        if "--traceback" in rest:
            raise
        extra, _ = EXTRAS.get(getattr(error, "name", None), (None, None))
        remedy = f": pip install aid_d2[{extra}]" if extra else ""
        print(f"aid-d2 {name}: {error}{remedy}  (--traceback shows where)", file=sys.stderr)
        return 2


def command_names() -> list[str]:
    """In the order of the alphabet."""
    return [x.name.replace("_", "-") for x in pkgutil.iter_modules(commands.__path__)]


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}")


def command_parser(name: str) -> argparse.ArgumentParser:
    """Of the arguments of a command."""
    command = _load(name)
    parent = getattr(command, "PARENT", None)
    parser = argparse.ArgumentParser(
        prog=f"aid-d2 {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[parent] if parent else [],
        add_help=parent is None,
    )
    parser.add_argument("--traceback", action="store_true", help="of an error, for its developers")
    command.add_arguments(parser)
    return parser


def _overview() -> str:
    lines = [f"  aid-d2 {name:<14}{_summary(name)}" for name in command_names()]
    return "\n".join(["Commands, each with --help:", *lines])


def _summary(name: str) -> str:
    """The first line of a command's docstring, which its extra need not be installed for."""
    file = Path(commands.__file__).with_name(f"{name.replace('-', '_')}.py")
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
