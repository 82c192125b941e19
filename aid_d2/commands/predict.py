r"""Draw and list what a detector finds in images, a video or a camera's pictures.

    aid-d2 predict --config-file output/student/config.yaml \
        --weights output/student/model_final.pth --input photos --output seen

`--output` then has a picture of each image, or video.mp4, and detections.json in COCO's format.
"""

import argparse
from pathlib import Path

from ..deploy.detector import TrainedDetector
from ..deploy.files import require_empty
from ..deploy.predict import predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", default="", help="by default MODEL.WEIGHTS of the config")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        help="image files, folders, globs; or one video, or a camera's number",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="for pictures and json"
    )
    parser.add_argument("--score", type=float, default=0.5, help="least score (default 0.5)")
    parser.add_argument(
        "--compare", metavar="CONFIG:WEIGHTS", help="another detector, drawn beside the first"
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="folded norms, channels last, and bfloat16 where that is fast",
    )
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE ... of the config")


def run(args: argparse.Namespace) -> None:
    """Draw and list the detections."""
    require_empty(args.output)
    detectors = [TrainedDetector.load(args.config_file, args.weights, args.opts, args.score)]
    if args.compare:
        config, _, weights = args.compare.partition(":")
        detectors.append(TrainedDetector.load(config, weights, score=args.score))
    if args.fast:
        for detector in detectors:
            detector.speed_up()
    predict(detectors, args.input, args.output, args.score)
