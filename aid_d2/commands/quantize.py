r"""Write an exported detector in 8-bit integers, if that keeps its AP.

    aid-d2 quantize --onnx student.onnx --images photos \
        --evaluate output/student/config.yaml --output student_int8.onnx

The images set the range of each map; --evaluate names a config, on whose DATASETS.TEST both files
are compared. A file that loses more than 1 AP is not kept. `run_onnx.py` and `aid-d2 benchmark` run
it as they run the other one.
"""

import argparse
from pathlib import Path

from ..config import load_config
from ..deploy.average_precision import TestSet
from ..deploy.files import kept_if_whole, require_absent
from ..deploy.images import read_images
from ..deploy.quantize import quantize
from ..deploy.runtime import Detector

MOST_AP_LOST = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="of aid-d2 export")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="not of the test")
    parser.add_argument("--count", type=int, default=100, help="how many of them (default 100)")
    parser.add_argument(
        "--evaluate", required=True, metavar="CONFIG", help="measure AP on its DATASETS.TEST"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="name.onnx")


def run(args: argparse.Namespace) -> None:
    """Quantize, and print the AP of both files."""
    if not args.onnx.is_file():
        raise FileNotFoundError(f"--onnx: there is no file {args.onnx}.")
    require_absent(args.output)
    data = TestSet(load_config(args.evaluate))
    data.require_classes(Detector(str(args.onnx)).metadata["classes"])
    images = read_images(args.images, args.count)
    with kept_if_whole(args.output) as scratch:
        quantize(args.onnx, images, scratch)
        before, after = (_average_precision(data, path) for path in (args.onnx, scratch))
        print(f"AP of {args.onnx}: {before:.2f}, in 8 bits: {after:.2f}")
        if not after >= before - MOST_AP_LOST:
            raise ValueError(
                f"8 bits lose {before - after:.2f} AP, more than {MOST_AP_LOST}: nothing is kept."
            )
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")


def _average_precision(data: TestSet, path: Path) -> float:
    detector = Detector(str(path))
    return data.average_precision(detector.resize, detector.run)
