"""Hooks of MkDocs (mkdocs.yml): pages and files outside docs/ are part of the site too.

Links in Markdown are those that work in the repository. The site has docs/ at its root, and any
other file that a page links to at its path in the repository.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md", "results/README.md")
_LINK = re.compile(r"(?<=\]\()(?!https?:)([^)\s#]+)")


def on_files(files, config):
    """Add the pages, and the files that they or docs/ link to."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        source = Path(page.abs_src_path)
        for link in _LINK.findall(source.read_text()):
            target = (source.parent / link).resolve()
            if target.is_file() and files.get_file_from_path(uri(target)) is None:
                files.append(File.generated(config, uri(target), abs_src_path=str(target)))
    return files


def on_page_markdown(markdown, page, **kwargs):
    """Make links lead from place to place of the site. It cannot show folders: they lose theirs."""
    source = Path(page.file.abs_src_path)

    def moved(match):
        target = (source.parent / match[1]).resolve()
        return os.path.relpath(uri(target), Path(page.file.src_uri).parent)

    def is_folder(match):
        return match[1] if (source.parent / match[2]).is_dir() else match[0]

    markdown = re.sub(r"\[([^\]\[]+)\]\(([^)\s:]+)\)", is_folder, markdown)
    return _LINK.sub(moved, markdown)


def uri(path: Path) -> str:
    """Where a file of the repository is in the site."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()
