"""Spoils labels of a COCO-json file, to see what wrong labels do.

    python tools/corrupt_coco.py instances.json --share 0.3 --output noisy.json
    python tools/corrupt_coco.py instances.json --swap bus truck --output swapped.json

With `--share` labels are wrong at random: a third each gets a wrong class, a shifted and resized box,
or is dropped, and the same seed gives the same errors. With `--swap` they are wrong always: each of the
two classes has the name of the other one. The images stay as they are. What is left of the wrong labels
has a key `label_error`.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from aid_d2.data.coco_json import read_coco_json
from aid_d2.data.label_noise import corrupt_coco, swap_classes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, metavar="FILE.json")
    errors = parser.add_mutually_exclusive_group(required=True)
    errors.add_argument("--share", type=float, help="of the labels, 0 to 1")
    errors.add_argument(
        "--swap", nargs=2, action="append", metavar="CLASS", help="any number of times"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--seed", type=int, default=0, help="of --share")
    args = parser.parse_args()
    if args.output.exists():
        raise FileExistsError(
            f"{args.output} exists already: remove it, or choose another --output."
        )
    coco = read_coco_json(args.annotations)
    if args.swap:
        noisy = swap_classes(coco, args.swap)
    else:
        noisy = corrupt_coco(np.random.default_rng(args.seed), coco, args.share)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(noisy))
    wrong = sum("label_error" in x for x in noisy["annotations"])
    dropped = len(coco["annotations"]) - len(noisy["annotations"])
    print(f"{args.output}: {wrong} labels are wrong, {dropped} are gone")


if __name__ == "__main__":
    main()
