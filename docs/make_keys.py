"""Write docs/keys.md: each config key of aid_d2, its default and the comment above it in the code.

python docs/make_keys.py
"""

import inspect
import re
from pathlib import Path

from aid_d2.config import CONFIG_EXTENSIONS, default_config
from aid_d2.distillers import DISTILLER_REGISTRY
from aid_d2.distillers.build import add_config
from detectron2.config import CfgNode, get_cfg

PAGE = Path(__file__).with_name("keys.md")


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    """The whole page."""
    comments = {}
    for extend in CONFIG_EXTENSIONS:
        if extend is not add_config:
            comments.update(comments_of(extend))
    for name, method in DISTILLER_REGISTRY:
        prefix = f"DISTILL.{name.upper()}."
        own = comments_of(method.config)
        comments.update({prefix + key: text for key, text in own.items()})
    lines = [
        "# Config keys",
        "",
        "Made by `python docs/make_keys.py` from the code. [What the methods do](methods.md).",
        "",
        "| key | default | |",
        "|---|---|---|",
    ]
    for key, value in added(default_config(), get_cfg()):
        lines.append(f"| `{key}` | `{value!r}` | {comments.get(key, '')} |")
    return "\n".join(lines) + "\n"


def comments_of(function) -> dict[str, str]:
    """The comment right above each `cfg.KEY = ...` or `node.KEY = ...` of a function, or above the
    keys before it.
    """
    result, comment, after_key = {}, [], False
    for line in map(str.strip, inspect.getsource(function).splitlines()):
        key = re.match(r"(?:cfg|node)\.([A-Z_.0-9]+) = ", line)
        if line.startswith("# "):
            comment = [*([] if after_key else comment), line.removeprefix("# ")]
        elif key:
            result[key[1]] = " ".join(comment).replace("|", "or")
        else:
            comment = []
        after_key = bool(key)
    return result


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
            keys.append((prefix + name, dict(value) if isinstance(value, CfgNode) else value))
    return keys


if __name__ == "__main__":
    main()
