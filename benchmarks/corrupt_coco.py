"""Spoils labels of a COCO-json file, to see what wrong labels do.

    python benchmarks/corrupt_coco.py instances.json --share 0.3 --output noisy.json
    python benchmarks/corrupt_coco.py instances.json --swap bus truck --output swapped.json

With `--share` labels are wrong at random: a third each gets a wrong class, a shifted and resized
box, or is dropped, and the same seed gives the same errors. With `--swap` they are wrong always:
each of the two classes has the name of the other one. The images stay as they are. What is left of
the wrong labels has a key `label_error`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aid_d2.data.coco_json import read_coco_json

WRONG_CLASS, JITTERED_BOX, DROPPED = "wrong class", "jittered box", "dropped"


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


def jitter_box(
    rng: np.random.Generator, box: Sequence[float], shape: tuple[int, int]
) -> tuple[float, ...]:
    """Move each side by 10 to 30% of the box, staying inside the image.

    Args:
        rng: source of randomness.
        box: x1, y1, x2, y2 in pixels.
        shape: height and width of the image in pixels.

    Returns:
        x1, y1, x2, y2
    """
    x1, y1, x2, y2 = box
    sizes = np.array([x2 - x1, y2 - y1] * 2)
    shift = rng.uniform(0.1, 0.3, 4) * rng.choice([-1, 1], 4) * sizes
    limits = np.array([shape[1], shape[0]] * 2)
    return tuple(np.clip(np.array(box) + shift, 0, limits).tolist())


def corrupt_coco(rng: np.random.Generator, coco: dict, share: float) -> dict:
    """Spoil labels at random: a wrong class, a shifted and resized box, or none at all.

    Args:
        rng: source of randomness.
        coco: a data set in COCO's format.
        share: probability that a label is spoilt; the kinds are equally likely.

    Returns:
        the data set with errors. A spoilt label that is left says how in its key `label_error`.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"The share of wrong labels is {share}; it has to lie between 0 and 1.")
    shapes = {x["id"]: (x["height"], x["width"]) for x in coco["images"]}
    classes = [x["id"] for x in coco["categories"]]
    kinds = [JITTERED_BOX, DROPPED] + [WRONG_CLASS] * (len(classes) > 1)
    labels = []
    for label in coco["annotations"]:
        kind = kinds[rng.integers(len(kinds))] if rng.random() < share else None
        if kind == DROPPED:
            continue
        if kind == WRONG_CLASS:
            others = [x for x in classes if x != label["category_id"]]
            label = {**label, "category_id": others[rng.integers(len(others))]}
        elif kind == JITTERED_BOX:
            x, y, w, h = label["bbox"]
            x1, y1, x2, y2 = jitter_box(rng, (x, y, x + w, y + h), shapes[label["image_id"]])
            label = {**label, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        labels.append({**label, "label_error": kind} if kind else label)
    return {**coco, "annotations": labels}


def swap_classes(coco: dict, pairs: Sequence[tuple[str, str]]) -> dict:
    """Give all labels of two classes the name of the other one: errors that can be learned.

    Args:
        coco: a data set in COCO's format.
        pairs: names of classes, none of them twice.

    Returns:
        the data set with errors. A label of these classes says so in its key `label_error`.

    Raises:
        ValueError: a class is not in the data set, or is named twice.
    """
    ids = {x["name"]: x["id"] for x in coco["categories"]}
    names = [name for pair in pairs for name in pair]
    for name in names:
        if name not in ids:
            raise ValueError(f"There is no class {name!r} to be swapped; there are {sorted(ids)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"The classes to be swapped are {names}; name each of them once.")
    other = {ids[x]: ids[y] for pair in pairs for x, y in (pair, pair[::-1])}
    labels = [
        (
            {**x, "category_id": other[x["category_id"]], "label_error": WRONG_CLASS}
            if x["category_id"] in other
            else x
        )
        for x in coco["annotations"]
    ]
    return {**coco, "annotations": labels}


if __name__ == "__main__":
    main()
