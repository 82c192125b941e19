"""What a training run wrote down."""

import json
from pathlib import Path


def read_metrics(file: Path) -> list[dict]:
    """The lines of Detectron2's `metrics.json`, oldest first; none if there is no file yet.

    A last line that is only just being written, or was when the run was killed, is left out.
    """
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(x) for x in lines if x.endswith("\n")]
