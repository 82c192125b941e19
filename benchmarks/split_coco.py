r"""Splits the images of a COCO-json file at random into two files.

    python benchmarks/split_coco.py instances.json --share 0.333 \
        --output labeled.json unlabeled.json

The first file has the share of the images, the second one the others; the same seed gives the same
split, and a smaller share a part of a larger one.
"""

import argparse
import json
import random
from pathlib import Path

from aid_d2.data.coco_json import read_coco_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, metavar="FILE.json")
    parser.add_argument("--share", type=float, required=True, help="of the images, 0 to 1")
    parser.add_argument("--output", nargs=2, type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 0 < args.share < 1:
        raise ValueError(f"--share is {args.share}; it has to lie between 0 and 1.")
    for path in args.output:
        if path.exists():
            raise FileExistsError(f"{path} exists already: remove it, or choose another --output.")
    coco = read_coco_json(args.annotations)
    ids = sorted(image["id"] for image in coco["images"])
    random.Random(args.seed).shuffle(ids)
    count = round(args.share * len(ids))
    for path, part in zip(args.output, (set(ids[:count]), set(ids[count:]))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(subset(coco, part)))
        print(f"{path}: {len(part)} images")


def subset(coco: dict, ids: set[int]) -> dict:
    """The same file with some of its images alone."""
    return {
        **coco,
        "images": [x for x in coco["images"] if x["id"] in ids],
        "annotations": [x for x in coco["annotations"] if x["image_id"] in ids],
    }


if __name__ == "__main__":
    main()
