"""What a training wrote of itself."""

import json
from pathlib import Path


def read_metrics(path: Path) -> list[dict]:
    """The lines of Detectron2's `metrics.json`, oldest first; none if there is no file yet.

    A line that is just being written, or that a kill cut off, is left out.
    """
    if not path.is_file():
        return []
    return [x for x in map(_parsed, path.read_text().splitlines(keepends=True)) if x is not None]


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
