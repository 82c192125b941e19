"""Files that are there only when they are whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_empty(folder: Path) -> None:
    """
    Raises:
        FileExistsError: --output is a file, or a folder with something in it.
    """
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise FileExistsError(f"--output {folder} is not an empty folder: choose another one.")


def require_absent(file: Path) -> None:
    """
    Raises:
        FileExistsError: --output exists.
    """
    if file.exists():
        raise FileExistsError(f"--output {file} exists already: remove it, or choose another name.")


@contextmanager
def kept_if_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, in a folder that is made if need be.

    That file becomes `path` as the block ends, and is removed if it ends by an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".writing")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
