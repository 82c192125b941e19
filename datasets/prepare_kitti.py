#!/usr/bin/env python
"""Checks a KITTI object detection tree and writes its training / validation split."""

import argparse
from collections import Counter
from pathlib import Path

from aid_d2.data.kitti import KITTI_TYPES, frame_files, frame_ids, parse_label_file, split_ids


def prepare(root: Path, seed: int, train_fraction: float, force: bool) -> dict[str, list[str]]:
    """Writes `ImageSets/train.txt` and `val.txt` under `root`.

    Args:
        root: the directory that holds `training/`.
        seed: of the split.
        train_fraction: part of the frames to train on, between 0 and 1.
        force: whether to write over an existing split.

    Returns:
        the frames of each split.

    Raises:
        FileExistsError: there is a split already.
        FileNotFoundError: the tree is not complete.
        ValueError: a label file is malformed.
    """
    ids = frame_ids(root)
    for _, label_file in frame_files(root, ids):
        parse_label_file(label_file)
    splits = dict(zip(("train", "val"), split_ids(ids, train_fraction, seed)))
    files = {split: root / "ImageSets" / f"{split}.txt" for split in splits}
    existing = [str(file) for file in files.values() if file.exists()]
    if existing and not force:
        raise FileExistsError(f"{', '.join(existing)} would be overwritten; --force does it.")
    for split, file in files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{frame}\n" for frame in splits[split]))
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="directory that holds training/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-fraction", type=float, default=0.8)
    parser.add_argument("--force", action="store_true", help="write over an existing split")
    args = parser.parse_args()
    try:
        splits = prepare(args.root, args.seed, args.train_fraction, args.force)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    for split, ids in splits.items():
        labels = (label for _, label in frame_files(args.root, ids))
        counts = Counter(obj.type for label in labels for obj in parse_label_file(label))
        objects = ", ".join(f"{name} {counts[name]}" for name in KITTI_TYPES)
        print(f"{split}: {len(ids)} frames; {objects}")


if __name__ == "__main__":
    main()
