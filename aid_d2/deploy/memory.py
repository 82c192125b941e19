"""How much memory a detector takes."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

_STATUS = Path("/proc/self/status")


class _Runs(Protocol):
    def run(self, image: np.ndarray) -> None: ...


def peak_memory(build: Callable[[], _Runs], image: np.ndarray) -> float | None:
    """What a detector takes for itself and one image, without its libraries' own.

    Args:
        build: makes it; it is called in a process of its own, and can be pickled.
        image: (H, W, 3) uint8 BGR.

    Returns:
        MiB, of a GPU's memory none; None where the system is not Linux.
    """
    if not _STATUS.exists():
        return None
    # What a forked process holds at first is its parent's.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_measure, build, image).result()


def _measure(build: Callable[[], _Runs], image: np.ndarray) -> float:
    before = _mebibytes("VmRSS")
    detector = build()
    # What building took does not count: 5 starts the high-water mark anew (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    detector.run(image)
    return _mebibytes("VmHWM") - before


def _mebibytes(entry: str) -> float:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[entry].split()[0]) / 1024
