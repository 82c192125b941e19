"""Images and videos, as users name them."""

import logging
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

logger = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
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
            found = [x for x in sorted(path.rglob("*")) if x.suffix.lower() in IMAGES]
        else:
            found = [path] if path.is_file() else [Path(x) for x in sorted(glob(text))]
        if not found:
            raise FileNotFoundError(f"--input: there is no image {text}, nor one in it.")
        files += found
    return files


def images(files: Sequence[Path]) -> Iterator[tuple[str, np.ndarray | None]]:
    """Name and BGR image of each file, None for what cannot be read."""
    for path in tqdm(files, unit="image"):
        yield str(path), cv2.imread(str(path))


def video_frames(source: str) -> Iterator[tuple[str, np.ndarray]]:
    """The frames of a video file, or of a camera until Ctrl-C."""
    video = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not video.isOpened():
        raise ValueError(f"--input: the video {source} cannot be opened.")
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    try:
        with tqdm(total=total if total > 0 else None, unit="frame") as progress:
            number = 0
            while (frame := video.read()[1]) is not None:
                yield f"{source}#{number}", frame
                number += 1
                progress.update()
    except KeyboardInterrupt:
        logger.info("Stopped: what was seen so far is kept.")
    finally:
        video.release()


def read_images(folder: Path, count: int) -> list[np.ndarray]:
    """The first images of a folder that can be read, BGR.

    Raises:
        FileNotFoundError: there is none.
    """
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    images: list[np.ndarray] = []
    for path in files:
        image = cv2.imread(str(path)) if path.is_file() else None
        if image is not None:
            images.append(image)
        if len(images) == count:
            break
    if not images:
        raise FileNotFoundError(f"--images: {folder} holds no image.")
    return images
