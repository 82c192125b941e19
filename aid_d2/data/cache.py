"""COCO-json files made from other annotations, kept in the user's cache directory."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from iopath.common.file_io import file_lock

logger = logging.getLogger(__name__)

# Part of every fingerprint: raise it when the contents of the written files change.
FORMAT_VERSION = 1


@cache
def cache_dir() -> Path:
    """Returns a writable `$XDG_CACHE_HOME/aid_d2`, `~/.cache/aid_d2` or temporary directory."""
    parent = os.getenv("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    wanted = Path(parent) / "aid_d2"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError as error:
        fallback = Path(tempfile.gettempdir()) / f"aid_d2-{os.getuid()}"
        fallback.mkdir(mode=0o700, parents=True, exist_ok=True)
        logger.warning(
            "Cannot write to the cache directory %s (%s): using %s. Set XDG_CACHE_HOME to choose.",
            wanted,
            error.strerror,
            fallback,
        )
        return fallback


def fingerprint(parts: object, files: Iterable[Path]) -> str:
    """Hashes what a converted file is made from, without reading the sources.

    Args:
        parts: settings of the conversion, anything `json.dumps` takes.
        files: sources, each standing in by its name, size and time of last change.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, parts]).encode())
    for file in files:
        stat = file.stat()
        digest.update(f"\n{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def cached_coco_json(path: Path, key: str, build: Callable[[], dict]) -> Path:
    """Makes sure that `path` holds what `build` returns, calling it only when `key` is new.

    Several processes may ask at once: one builds, the others wait for it.

    Args:
        path: of the json file; `<path>.key` beside it holds the key it was built with.
        key: changes when the result of `build` would, see :func:`fingerprint`.
        build: returns the contents as a dict in COCO's format.

    Returns:
        `path`.
    """
    key_file = path.with_name(f"{path.name}.key")

    def is_fresh() -> bool:
        return path.is_file() and key_file.is_file() and key_file.read_text() == key

    if is_fresh():
        return path
    with file_lock(str(path)):
        if not is_fresh():
            content = json.dumps(build())
            # Without its key a file counts as stale, so a crash between these lines is harmless.
            key_file.unlink(missing_ok=True)
            _write_atomically(path, content)
            _write_atomically(key_file, key)
            logger.info("Wrote %s.", path)
    return path


def _write_atomically(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
