"""docs/keys.md, commands.md and methods/ are what docs/make_pages.py makes of the code."""

import runpy
from pathlib import Path

from aid_d2.distillers import DISTILLER_REGISTRY

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_are_up_to_date():
    for path, text in runpy.run_path(str(DOCS / "make_pages.py"))["pages"]().items():
        assert path.read_text() == text, f"{path}: run python docs/make_pages.py"


def test_every_method_has_a_page_and_every_page_a_method():
    pages = {path.stem for path in (DOCS / "methods").glob("*.md")}
    assert pages == {name.lower() for name, _ in DISTILLER_REGISTRY}
