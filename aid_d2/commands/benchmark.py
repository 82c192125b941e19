r"""Time detectors side by side, in PyTorch and as exported files.

    aid-d2 benchmark --images photos --threads 2 \
        --torch teacher=output/teacher/config.yaml:output/teacher/model_final.pth \
        --onnx teacher=teacher.onnx student=student.onnx

All take turns on the images one by one. The table has medians of the repeats, and the least and
most; `faster` compares with the slowest. `--output` keeps it as json and Markdown.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from ..deploy.benchmark import as_markdown, onnx_candidate, report, time_all, torch_candidate
from ..deploy.export import read_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    parser.add_argument("--torch", nargs="+", default=[], metavar="NAME=CONFIG:WEIGHTS")
    parser.add_argument("--onnx", nargs="+", default=[], metavar="NAME=FILE.onnx")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the processor")
    parser.add_argument("--repeats", type=int, default=30, help="of each detector (default 30)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="for benchmark.json and .md")


def run(args: argparse.Namespace) -> None:
    """Time all detectors and print the table."""
    if not args.torch and not args.onnx:
        raise ValueError("There is nothing to time: name detectors by --torch or --onnx.")
    if args.repeats < 1 or args.threads < 1:
        raise ValueError("--repeats and --threads have to be 1 at least.")
    images = read_images(args.images, args.repeats)
    torch.set_num_threads(args.threads)
    candidates = []
    for text in args.torch:
        name, file = _named("--torch", text)
        config, separator, weights = file.partition(":")
        if not separator:
            raise ValueError(f"--torch {text}: it has to be NAME=CONFIG:WEIGHTS.")
        candidates.append(torch_candidate(name, config, weights))
    for text in args.onnx:
        name, file = _named("--onnx", text)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"--onnx: there is no file {file}.")
        candidates.append(onnx_candidate(name, file, args.threads))
    time_all(candidates, images, args.repeats)
    rows = report(candidates)
    table = as_markdown(rows)
    print(table)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        content = {"threads": args.threads, "repeats": args.repeats, "rows": rows}
        (args.output / "benchmark.json").write_text(json.dumps(content, indent=1))
        (args.output / "benchmark.md").write_text(f"{args.threads} threads\n\n{table}\n")


def _named(option: str, text: str) -> tuple[str, str]:
    name, separator, file = text.partition("=")
    if not separator:
        raise ValueError(f"{option} {text}: it has to begin with NAME=.")
    return name, file
