r"""Check and measure what a GPU can break: tests, precisions, cost of a step, a short training.

    aid-d2 gpu-check --minutes 8 --output gpu_check

needs no data and downloads nothing; `--data JSON IMAGES` adds a short training. Each part stands
alone. A part is skipped, with a reason, where it does not apply or time is short. `gpu_check.json`
and `gpu_check.md` are written again after each part. With `--device cpu` everything runs small.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tabulate import tabulate

from ..engine.gpu_check import Setting, Skip, all_parts

# Below this a part would hardly begin.
LEAST_SECONDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts (default 8)")
    parser.add_argument(
        "--output", type=Path, default=Path("gpu_check"), metavar="DIR", help="default gpu_check"
    )
    parser.add_argument("--data", nargs=2, metavar=("JSON", "IMAGES"), help="in COCO's format")


def run(args: argparse.Namespace) -> int:
    """Run the parts; the exit status is 1 if one of them failed."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no GPU that torch can use: --device cpu runs everything small.")
    for path in args.data or ():
        if not Path(path).exists():
            raise FileNotFoundError(f"--data: there is no {path}.")
    args.output.mkdir(parents=True, exist_ok=True)
    data = args.data and tuple(str(Path(x).resolve()) for x in args.data)
    end, results = time.monotonic() + 60 * args.minutes, {}
    for name, part in all_parts().items():
        start = time.monotonic()
        result = _attempt(part, Setting(args.device, data, end - start))
        results[name] = {**result, "seconds": round(time.monotonic() - start, 1)}
        print(f"{name}: {result['status']}", flush=True)
        (args.output / "gpu_check.json").write_text(json.dumps(results, indent=1))
        (args.output / "gpu_check.md").write_text(as_markdown(results))
    print(f"See {args.output}/gpu_check.md.")
    return int(any(x["status"].startswith("failed") for x in results.values()))


def _attempt(part, setting: Setting) -> dict:
    if setting.seconds < LEAST_SECONDS:
        return {"status": "skipped: time is short"}
    try:
        return {"status": "ok", "figures": part(setting)}
    except Skip as reason:
        return {"status": f"skipped: {reason}"}
    # The other parts are worth having whatever happens in this one.
    except Exception as error:
        return {"status": f"failed: {type(error).__name__}: {error}"}


def as_markdown(results: dict) -> str:
    """The table of costs, and what came of each part."""
    costs = {
        name.removeprefix("cost of "): result["figures"]
        for name, result in results.items()
        if name.startswith("cost of ") and "figures" in result
    }
    rows = [{"": name, **figures} for name, figures in costs.items()]
    parts = [
        {"part": name, "seconds": result["seconds"], "result": result["status"].splitlines()[0]}
        for name, result in results.items()
    ]
    known = results.get("machine", {}).get("figures", {})
    tables = (tabulate(x, headers="keys", tablefmt="github", floatfmt=".3f") for x in (rows, parts))
    return "\n\n".join([", ".join(f"{k} {v}" for k, v in known.items()), *tables]) + "\n"
