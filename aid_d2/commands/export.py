r"""Write a detector as a file for ONNX Runtime or PyTorch, checked against Detectron2.

    aid-d2 export --config-file output/student/config.yaml \
        --weights output/student/model_final.pth --images photos --output student.onnx

The output is an .onnx, beside which comes `run_onnx.py`, which runs it with NumPy, OpenCV and
onnxruntime alone; or a .pt2, a program of `torch.export` that runs without Detectron2. With
`--student-only` it is a .pth of the student's weights instead.
"""

import argparse
from pathlib import Path

from ..deploy.average_precision import TestSet
from ..deploy.detector import TrainedDetector
from ..deploy.export import FORMATS, export_file, slim_checkpoint
from ..deploy.files import require_absent
from ..deploy.images import image_sizes, read_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    parser.add_argument("--config-file", required=True, help="of the detector")
    parser.add_argument("--weights", required=True, help="its checkpoint")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="its suffix is the format: .onnx, .pt2",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="of the kind to come: file and PyTorch see them"
    )
    parser.add_argument("--count", type=int, default=20, help="how many of them (default 20)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="that resized images are padded to; by default the least that fits --images",
    )
    parser.add_argument(
        "--topk", type=int, default=0, metavar="N", help="candidates that the NMS sees"
    )
    parser.add_argument(
        "--no-nms", action="store_true", help="for runtimes with an NMS: all candidates come out"
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="also compare both by AP on DATASETS.TEST"
    )
    parser.add_argument("--student-only", action="store_true", help="write a slim checkpoint")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE ... of the config")


def run(args: argparse.Namespace) -> None:
    """Export, and print how file and PyTorch compare."""
    suffixes = [".pth"] if args.student_only else list(FORMATS)
    if args.output.suffix not in suffixes:
        raise ValueError(f"--output {args.output} has to end in {' or '.join(suffixes)}.")
    require_absent(args.output)
    if args.student_only:
        detector = TrainedDetector.load(args.config_file, args.weights, args.opts)
        slim_checkpoint(detector, args.output)
    else:
        _export(args)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")


def _export(args: argparse.Namespace) -> None:
    if args.images is None:
        raise ValueError("--images is missing: file and PyTorch are compared on them.")
    if args.topk < 0:
        raise ValueError(f"--topk {args.topk} has to be 1 at least.")
    images = read_images(args.images, args.count)
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    detector = TrainedDetector.load(args.config_file, args.weights, opts)
    data = TestSet(detector.cfg) if args.evaluate else None
    if data:
        data.require_classes(detector.class_names)
    canvas = args.size or detector.canvas(image_sizes(args.images))
    print(f"Writing {args.output} takes a minute; then {len(images)} images are compared.")
    print(export_file(detector, args.output, images, canvas, args.topk, not args.no_nms))
    if data:
        # Both see images as Detectron2 resizes them: this compares the networks.
        exported = FORMATS[args.output.suffix][1](str(args.output))
        for name, detect in (("PyTorch", detector.arrays), ("the file", exported.run)):
            ap = data.average_precision(detector.resize, detect)
            print(f"AP of {name}: {ap:.4f}")
