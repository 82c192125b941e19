"""Images and videos, as users name them."""

import logging
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from detectron2.data.detection_utils import read_image

from ..data.image_check import files_under, size_of, spread
from ..data.readable import read_or_skip

logger = logging.getLogger(__name__)

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")


def image_files(source: Sequence[str]) -> list[Path]:
    """The image files that files, folders and globs name.

    Raises:
        FileNotFoundError: one names none.
    """
    files: list[Path] = []
    for text in source:
        path = Path(text)
        if path.is_dir():
            found = files_under(path)
        else:
            found = [path] if path.is_file() else [Path(x) for x in sorted(glob(text))]
        if not found:
            raise FileNotFoundError(f"--input: there is no image {text}, nor one in it.")
        files += found
    return files


def images(files: Sequence[Path]) -> Iterator[tuple[str, np.ndarray | None]]:
    """Name and BGR image of each file, as training reads it; None, with a warning, for what cannot
    be read.
    """
    for path in tqdm(files, unit="image"):
        yield str(path), read_or_skip(read_bgr, {"file_name": str(path)})


def read_bgr(record: dict) -> np.ndarray:
    """The image (H, W, 3) uint8 BGR of a data set dict, as training reads it."""
    return np.ascontiguousarray(read_image(record["file_name"], "BGR"))


def read_size(record: dict) -> tuple[int, int]:
    """Width and height of the image of a data set dict, as training sees them."""
    return size_of(record["file_name"])


def write_image(file: Path, image: np.ndarray) -> None:
    """Write a BGR image.

    Raises:
        OSError: it cannot be written.
    """
    if not cv2.imwrite(str(file), image):
        raise OSError(f"{file} cannot be written.")


def is_camera(source: str) -> bool:
    """Whether it is a camera's number, and no file or folder of that name."""
    return source.isdecimal() and not Path(source).exists()


class Video:
    """The frames of a video file, or of a camera.

    Args:
        source: file, or number of the camera.

    Attributes:
        rate: frames a second, 25 where it is not known.

    Raises:
        ValueError: it cannot be opened.
    """

    def __init__(self, source: str):
        self.source = source
        self.capture = cv2.VideoCapture(int(source) if is_camera(source) else source)
        if not self.capture.isOpened():
            raise ValueError(f"--input: the video {source} cannot be opened.")
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if rate > 0 else 25.0

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        total = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        number = 0
        try:
            with tqdm(total=total if total > 0 else None, unit="frame") as progress:
                while (frame := self.capture.read()[1]) is not None:
                    yield f"{self.source}#{number}", frame
                    number += 1
                    progress.update()
        finally:
            self.capture.release()
        if number < total:
            logger.warning(
                f"{self.source} is damaged: {total - number} of its {total} frames are missing."
            )


def image_sizes(folder: Path) -> list[tuple[int, int]]:
    """(H, W) of the images in a folder and below, by their headers; of those that can be read."""
    found = (read_or_skip(read_size, {"file_name": str(x)}) for x in files_under(folder))
    return [size[::-1] for size in found if size is not None]


def read_images(folder: Path, count: int) -> list[np.ndarray]:
    """Images of a folder, spread evenly over its files in their order, BGR.

    Args:
        folder: and its subfolders.
        count: how many at most; what cannot be read is left out with a warning.

    Raises:
        FileNotFoundError: there is none.
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"--count is {count}; it has to be 1 at least.")
    files = files_under(folder) if folder.is_dir() else []
    found = [image for _, image in images(spread(files, count)) if image is not None]
    if not found:
        raise FileNotFoundError(f"--images: {folder} holds no image.")
    return found
