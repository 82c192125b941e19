"""What tests of documentation pages share."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The command `aid-d2`, of this copy of aid_d2.
AID_D2 = [sys.executable, "-W", "ignore", "-m", "aid_d2"]


def first_distillation_files():
    """The yaml files of the page "First distillation", text by name."""
    page = (ROOT / "docs" / "first_distillation.md").read_text()
    return dict(re.findall(r"`(\w+\.yaml)`[^`]*?\n\n```yaml\n(.*?)```", page, re.DOTALL))


def small_training(coco_json):
    """Keys of a training of two steps on an entry of DATASETS.COCO_JSON."""
    return {
        "DATASETS.COCO_JSON": [coco_json],
        "DATASETS.TRAIN": (coco_json[0],),
        "DATASETS.TEST": (),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (),
    }


def environment():
    """Of a process in which this copy of aid_d2 is imported."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}
