"""docs/keys.md is what docs/make_keys.py makes of the code."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    make = runpy.run_path(str(ROOT / "docs" / "make_keys.py"))
    assert make["PAGE"].read_text() == make["page"](), "run python docs/make_keys.py"
