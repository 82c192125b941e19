"""Write what the documentation takes from the code.

python docs/make_pages.py

`keys.md` is made whole: each config key, its default and the comment above it; and `commands.md`:
each command and its options. Of the pages in `methods/` the part below MARK is made: what the
method computes, its keys, and a config.
"""

import argparse
import inspect
import re
from pathlib import Path

from aid_d2.cli import command_names, command_parser
from aid_d2.config import CONFIG_EXTENSIONS, default_config
from aid_d2.distillers import DISTILLER_REGISTRY
from aid_d2.distillers.build import add_config
from detectron2.config import CfgNode, get_cfg

DOCS = Path(__file__).parent
MARK = "<!-- Below: made by `python docs/make_pages.py` from the code. -->"


def main() -> None:
    for path, text in pages().items():
        path.write_text(text)


def pages() -> dict[Path, str]:
    """All pages that this makes, whole."""
    made = {DOCS / "keys.md": keys_page(), DOCS / "commands.md": commands_page()}
    for name, method in DISTILLER_REGISTRY:
        path = DOCS / "methods" / f"{name.lower()}.md"
        own = path.read_text().split(MARK)[0].rstrip()
        made[path] = f"{own}\n\n{MARK}\n\n{method_part(name, method)}"
    return made


def method_part(name: str, method: type) -> str:
    """What is made of the page of a method."""
    file = Path(inspect.getfile(method)).name
    comments = method_comments(method)
    rows = [
        f"| `DISTILL.{name.upper()}.{key}` | `{plain(value)!r}` | {comments.get(key, '')} |"
        for key, value in method.config().items()
    ]
    keys = ["| key | default | |", "|---|---|---|", *rows]
    return "\n".join(
        [
            "## What it computes",
            "",
            # Formulas are indented, as Markdown wants it of code.
            re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.getdoc(method)),
            "",
            f"Code: [aid_d2/distillers/{file}](../../aid_d2/distillers/{file})",
            "",
            "## Config",
            "",
            "```yaml",
            "DISTILL:",
            f"  METHODS: [{name}]",
            "```",
            "",
            *keys,
            "",
        ]
    )


def commands_page() -> str:
    """The page of all commands."""
    lines = ["# Commands", "", "Made by `python docs/make_pages.py` from the code.", ""]
    for name in command_names():
        parser = command_parser(name)
        text = inspect.cleandoc(parser.description)
        lines += [f"## aid-d2 {name}", "", text, "", "| option | |", "|---|---|"]
        for action in parser._actions:
            if action.dest not in ("help", "traceback") and action.help != argparse.SUPPRESS:
                lines.append(option_row(action))
        lines.append("")
    return "\n".join(
        [*lines, "All have `--help`, and `--traceback` for an error's developers.", ""]
    )


def option_row(action: argparse.Action) -> str:
    """The line of an option in the table of its command."""
    names = ", ".join(action.option_strings) or action.dest
    values = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    values = " ".join(values) if isinstance(values, tuple) else values
    needed = " (required)" if action.required and action.option_strings else ""
    shown = f"{names} {values}".strip() if action.option_strings else values
    text = " ".join((action.help or "").replace("|", "or").split()) % vars(action)
    return f"| `{shown}` | {text}{needed} |"


def keys_page() -> str:
    """The page of all keys."""
    comments = {}
    for extend in CONFIG_EXTENSIONS:
        if extend is not add_config:
            comments.update(comments_of(extend))
    for name, method in DISTILLER_REGISTRY:
        prefix = f"DISTILL.{name.upper()}."
        own = method_comments(method)
        comments.update({prefix + key: text for key, text in own.items()})
    lines = [
        "# Config keys",
        "",
        "Made by `python docs/make_pages.py` from the code. [What the methods do](methods.md).",
        "",
        "| key | default | |",
        "|---|---|---|",
    ]
    for key, value in added(default_config(), get_cfg()):
        lines.append(f"| `{key}` | `{plain(value)!r}` | {comments.get(key, '')} |")
    return "\n".join(lines) + "\n"


def comments_of(function) -> dict[str, str]:
    """The comment beside each `cfg.KEY = ...` or `node.KEY = ...` of a function, or right above it,
    or above the keys before it.
    """
    result, comment, after_key = {}, [], False
    for line in map(str.strip, inspect.getsource(function).splitlines()):
        key = re.match(r"(?:cfg|node)\.([A-Z_.0-9]+) = .*?(?:  # (.*))?$", line)
        if line.startswith("# "):
            comment = [*([] if after_key else comment), line.removeprefix("# ")]
        elif key:
            comment = [key[2]] if key[2] else comment
            result[key[1]] = " ".join(comment).replace("|", "or")
        else:
            comment = []
        after_key = bool(key)
    return result


def method_comments(method: type) -> dict[str, str]:
    """Those of a method's keys; of a node those of its own keys too, which a function beside the
    method fills.
    """
    parts = {}
    for _, function in inspect.getmembers(inspect.getmodule(method), inspect.isfunction):
        if "node = CN()" in inspect.getsource(function):
            parts.update(comments_of(function))
    comments = comments_of(method.config)
    for key, value in method.config().items():
        if isinstance(value, CfgNode):
            told = [f"`{x}`: {parts[x]}" for x in value if parts.get(x)]
            comments[key] = ". ".join([comments.get(key, "").rstrip("."), *told]) + "."
    return comments


def added(cfg: CfgNode, before: CfgNode, prefix: str = "") -> list[tuple[str, object]]:
    """Dotted keys and values of a config that another one does not have.

    A method's constants of one kind of detector stay together.
    """
    keys = []
    for name, value in cfg.items():
        of_method = prefix.count(".") == 2
        if isinstance(value, CfgNode) and not of_method:
            keys += added(value, before.get(name, CfgNode()), f"{prefix}{name}.")
        elif name not in before:
            keys.append((prefix + name, value))
    return keys


def plain(value: object) -> object:
    """A node as a dict."""
    return dict(value) if isinstance(value, CfgNode) else value


if __name__ == "__main__":
    main()
