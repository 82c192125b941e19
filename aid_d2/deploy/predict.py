"""Detections on images and videos: pictures to look at, and COCO json."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

from ..data.coco_file import add_annotation, categories_of
from .detector import TrainedDetector
from .images import VIDEOS, Video, image_files, images, is_camera, write_image

logger = logging.getLogger(__name__)


class Sink:
    """Writes pictures of images, or one video, and collects detections in COCO's format."""

    def __init__(self, folder: Path, class_names: Sequence[str]):
        self.folder = folder
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.categories = categories_of(class_names)
        self.same: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)

    def free_name(self, stem: str) -> str:
        """Of a picture, which no other picture has."""
        self.same[stem] += 1
        if self.same[stem] == 1:
            return f"{stem}.jpg"
        return self.free_name(f"{stem}_{self.same[stem] - 1}")

    def add(self, name: str, image: np.ndarray, found: Instances, picture: str) -> None:
        """The detections on one image, which are drawn into the picture of that name."""
        image_id = len(self.images) + 1
        height, width = image.shape[:2]
        size = {"height": height, "width": width}
        self.images.append({"id": image_id, "file_name": name, **size, "picture": picture})
        boxes = BoxMode.convert(found.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        for box, score, label in zip(
            boxes.tolist(), found.scores.tolist(), found.pred_classes.tolist()
        ):
            add_annotation(self.annotations, image_id, label + 1, box, score=score)

    def write(self) -> None:
        """Write detections.json."""
        content = {x: getattr(self, x) for x in ("images", "annotations", "categories")}
        (self.folder / "detections.json").write_text(json.dumps(content))


def predict(
    detectors: Sequence[TrainedDetector], source: Sequence[str], output: Path, score: float
) -> None:
    """Run detectors side by side.

    Args:
        detectors: the first one's detections go to detections.json.
        source: image files, folders and globs of them, or one video file or camera number.
        output: folder for pictures or `video.mp4`, and detections.json.
        score: least score.

    Raises:
        FileNotFoundError: there is no such file, or no image in a folder.
        ValueError: a video cannot be read, or not be written.
    """
    is_video = len(source) == 1 and (is_camera(source[0]) or source[0].lower().endswith(VIDEOS))
    video = Video(source[0]) if is_video else None
    frames = video or images(image_files(source))
    sink, writer, skipped = Sink(output, detectors[0].class_names), None, 0
    try:
        for name, image in frames:
            if image is None:
                skipped += 1
                continue
            found = [detector(image, score) for detector in detectors]
            drawn = "video.mp4" if video else sink.free_name(Path(name).stem)
            sink.add(name, image, found[0], drawn)
            picture = side_by_side(image, detectors, found)
            if video:
                writer = writer or _writer(output / drawn, picture, video.rate)
                writer.write(picture)
            else:
                write_image(output / drawn, picture)
    except KeyboardInterrupt:
        logger.warning("Stopped: what was seen so far is kept.")
    finally:
        if writer is not None:
            writer.release()
        sink.write()
    print(
        f"{len(sink.annotations)} detections on {len(sink.images)} images, {skipped} skipped: "
        f"see {output}"
    )


def side_by_side(
    image: np.ndarray, detectors: Sequence[TrainedDetector], found: Sequence[Instances]
) -> np.ndarray:
    """BGR pictures of the detections, titled by their weights where there are several."""
    pictures = []
    for detector, instances in zip(detectors, found):
        visualizer = Visualizer(image[:, :, ::-1], Metadata(thing_classes=detector.class_names))
        picture = visualizer.draw_instance_predictions(instances).get_image()[:, :, ::-1].copy()
        if len(detectors) > 1:
            picture = cv2.copyMakeBorder(picture, 24, 0, 0, 0, cv2.BORDER_CONSTANT)
            place, white = (6, 17), (255, 255, 255)
            title = detector.weights
            cv2.putText(picture, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, white, 1, cv2.LINE_AA)
        pictures.append(picture)
    return np.hstack(pictures)


def _writer(path: Path, picture: np.ndarray, rate: float) -> cv2.VideoWriter:
    height, width = picture.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    if not writer.isOpened():
        raise ValueError(f"{path}: OpenCV writes no video of {width} x {height} pixels.")
    return writer
