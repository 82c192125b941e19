r"""Time detectors side by side, in PyTorch and as exported files.

    aid-d2 benchmark --images photos --threads 2 \
        --torch teacher=output/teacher/config.yaml:output/teacher/model_final.pth \
        --onnx teacher=teacher.onnx student=student.onnx

All take turns on the images one by one. The table has medians of the repeats, and the least and
most; `faster` compares with the slowest. `detect` is all from the resized image to detections,
NMS included. `--evaluate CONFIG` adds the AP on the data set of a config. `--output` keeps the
table as json, Markdown and, with an AP, a plot.
"""

import argparse
import importlib
import json
import os
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

from ..config import load_config
from ..deploy.average_precision import TestSet
from ..deploy.benchmark import (
    evaluate_all,
    file_candidate,
    plot,
    report,
    time_all,
    torch_candidate,
)
from ..deploy.images import read_images
from ..deploy.memory import peak_memory
from ..deploy.runtime import Detector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    torch_form, file_form = "NAME=CONFIG:WEIGHTS", "NAME=FILE.onnx"
    parser.add_argument(
        "--torch", nargs="+", default=[], metavar=torch_form, help="as Detectron2 runs them"
    )
    parser.add_argument(
        "--torch-fast",
        nargs="+",
        default=[],
        metavar=torch_form,
        help="with folded norms, channels last, and bfloat16 where that is fast",
    )
    parser.add_argument("--onnx", nargs="+", default=[], metavar=file_form, help="ONNX Runtime")
    parser.add_argument(
        "--openvino", nargs="+", default=[], metavar=file_form, help="the same files in OpenVINO"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="to detect in")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of the processor (all)"
    )
    parser.add_argument("--repeats", type=int, default=30, help="of each detector (default 30)")
    parser.add_argument(
        "--evaluate", metavar="CONFIG", help="measure AP on the DATASETS.TEST of this config"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="for the table and its plot")


def run(args: argparse.Namespace) -> None:
    """Time all detectors and print the table."""
    if not (args.torch or args.torch_fast or args.onnx or args.openvino):
        raise ValueError("There is nothing to time: name detectors by --torch or --onnx.")
    if args.repeats < 1 or args.threads < 1:
        raise ValueError("--repeats and --threads have to be 1 at least.")
    data = TestSet(load_config(args.evaluate)) if args.evaluate else None
    images = read_images(args.images, args.repeats)
    sizes = [image.shape[:2] for image in images]
    torch.set_num_threads(args.threads)
    builders = []
    for option, fast in (("torch", False), ("torch_fast", True)):
        for text in getattr(args, option):
            name, file = _named(option, text)
            config, separator, weights = file.partition(":")
            if not separator:
                raise ValueError(f"--{option} {text}: it has to be NAME=CONFIG:WEIGHTS.")
            builders.append(partial(torch_candidate, name, config, weights, sizes, fast))
    for option in ("onnx", "openvino"):
        for text in getattr(args, option):
            name, file = _named(option, text)
            if not os.path.isfile(file):
                raise FileNotFoundError(f"--{option}: there is no file {file}.")
            runtime = Detector if option == "onnx" else _openvino()
            builders.append(partial(file_candidate, name, runtime, file, args.threads))
    candidates = [build() for build in builders]
    if data:
        for candidate in candidates:
            data.require_classes(candidate.class_names)
    for candidate, build in zip(candidates, builders):
        candidate.memory = peak_memory(build, images[0])
    time_all(candidates, images, args.repeats)
    _show(report(candidates), args)
    if data:
        evaluate_all(candidates, data)
        _show(rows := report(candidates), args)
        if args.output:
            plot(rows, args.output / "benchmark.png")


def _show(rows: list[dict], args: argparse.Namespace) -> None:
    table = tabulate(rows, headers="keys", tablefmt="github")
    print(table)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        content = {"threads": args.threads, "repeats": args.repeats, "rows": rows}
        (args.output / "benchmark.json").write_text(json.dumps(content, indent=1))
        (args.output / "benchmark.md").write_text(f"{args.threads} threads\n\n{table}\n")


def _named(option: str, text: str) -> tuple[str, str]:
    name, separator, file = text.partition("=")
    if not separator:
        raise ValueError(f"--{option} {text}: it has to begin with NAME=.")
    return name, file


def _openvino() -> type[Detector]:
    """Imported on demand: it is an extra of its own."""
    return importlib.import_module("aid_d2.deploy.openvino_runtime").OpenVinoDetector
