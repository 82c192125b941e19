"""Run an exported detector, as on a car: NumPy, OpenCV and ONNX Runtime alone.

    python run_onnx.py student.onnx photo.jpg

`aid-d2 export` writes this file as `run_onnx.py` beside the detector's.
"""

import argparse
import json
import sys

import cv2
import numpy as np
import onnxruntime

# The first of these that is there runs a detector; TensorRT has not been tried.
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def require_metadata(path: str, stored: dict) -> None:
    """Raise ValueError where a file's metadata are not those that `aid-d2 export` writes."""
    if "canvas" not in stored:
        raise ValueError(f"{path} is not of `aid-d2 export`: it does not say what it takes.")


def read_metadata(path: str, stored: dict[str, str]) -> dict:
    """The metadata of an .onnx file, decoded.

    Raises:
        ValueError: the file is not of `aid-d2 export`.
    """
    require_metadata(path, stored)
    return {key: json.loads(value) for key, value in stored.items()}


class Detector:
    """An exported detector.

    Args:
        path: of the .onnx file.
        threads: of the processor; 0 leaves the number to ONNX Runtime.

    Attributes:
        path: of the file.
        runtime: what runs it.
        metadata: `classes`, `input_format`, `canvas` (H, W), `min_size`, `max_size`, `nms` (None
            where the file does it itself), `least_score` that the file shows, and where the file
            comes from.

    Raises:
        ValueError: the file cannot be run, or is not of `aid-d2 export`.
    """

    runtime = "ONNX Runtime"

    def __init__(self, path: str, threads: int = 0):
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Waiting threads leave the processor to others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = onnxruntime.get_available_providers()
        providers = [x for x in PROVIDERS if x in available]
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime raises of many kinds, which have no common base
            raise ValueError(f"{path} cannot be run: {error}") from error
        self.metadata = read_metadata(path, self.session.get_modelmeta().custom_metadata_map)

    def __call__(self, image: np.ndarray, score: float = 0.0) -> dict[str, np.ndarray]:
        """Detect objects.

        Args:
            image: (H, W, 3) uint8 BGR, as OpenCV reads it.
            score: least score.

        Returns:
            `boxes` (N, 4) in pixels of the image, `scores` (N,), `classes` (N,).
        """
        resized = self.resize(image)
        boxes, scores, classes = self.run(resized)
        height, width = image.shape[:2]
        scale = np.array([width, height] * 2) / np.array([*resized.shape[1::-1]] * 2)
        found = (scores > 0) & (scores >= score)
        return {
            "boxes": (boxes * scale).astype(np.float32)[found],
            "scores": scores[found],
            "classes": classes[found],
        }

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image at the size and in the channel order of the detector."""
        height, width = image.shape[:2]
        least, most = self.metadata["min_size"], self.metadata["max_size"]
        # Detectron2's 0: as it is.
        factor = min(least / min(height, width), most / max(height, width)) if least else 1
        size = int(width * factor + 0.5), int(height * factor + 0.5)
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(image, size, interpolation=method)
        return resized[:, :, ::-1] if self.metadata["input_format"] == "RGB" else resized

    def run(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes in pixels of the resized image, scores and classes; after them come zeros.

        Raises:
            ValueError: the image is larger than the canvas.
        """
        boxes, scores, classes = self.infer(self.inputs(image))
        height, width = image.shape[:2]
        if nms := self.metadata["nms"]:
            size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
            threshold, count = nms
            keep = cv2.dnn.NMSBoxesBatched(size, scores, classes, 0.0, threshold)
            keep = np.array(keep, int)[:count]
            boxes = boxes[keep].clip(0, [width, height, width, height])
            scores = scores[keep] * (boxes[:, 2:] > boxes[:, :2]).all(1)
            classes = classes[keep]
        return boxes, scores, classes

    def inputs(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """What the file sees of a resized image.

        Raises:
            ValueError: the image is larger than the canvas.
        """
        canvas = self.metadata["canvas"]
        height, width = image.shape[:2]
        if height > canvas[0] or width > canvas[1]:
            raise ValueError(
                f"The image is {height} x {width} when resized, and the detector was exported for "
                f"{canvas[0]} x {canvas[1]}: export it with a larger --size."
            )
        padded = np.zeros((*canvas, 3), np.uint8)
        padded[:height, :width] = image
        return {"image": padded, "valid": np.array([height, width], np.int64)}

    def infer(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The file's own outputs."""
        return tuple(self.session.run(["boxes", "scores", "classes"], inputs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Print what a detector finds: image, class, score, [x1, y1, x2, y2] in pixels."
    )
    parser.add_argument("file", metavar="FILE.onnx")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--score", type=float, default=0.5, help="least score (default 0.5)")
    args = parser.parse_args()
    try:
        detector = Detector(args.file)
    except ValueError as error:
        sys.exit(str(error))
    least = detector.metadata.get("least_score", 0.0)
    if args.score < least:
        print(f"the file shows nothing of a score below {least}", file=sys.stderr)
    broken = 0
    for name in args.images:
        image = cv2.imread(name)
        if image is None:
            print(f"{name} cannot be read", file=sys.stderr)
            broken += 1
            continue
        try:
            found = detector(image, args.score)
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            broken += 1
            continue
        if not len(found["scores"]):
            print(name, f"nothing of a score of {args.score}")
        for box, score, label in zip(found["boxes"], found["scores"], found["classes"]):
            corners = [round(float(x), 1) for x in box]
            print(name, detector.metadata["classes"][label], f"{score:.2f}", corners)
    sys.exit(int(broken > 0))


if __name__ == "__main__":
    main()
