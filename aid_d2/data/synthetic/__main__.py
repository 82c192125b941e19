"""Command line: python -m aid_d2.data.synthetic --images 1000."""

import argparse
import logging
from pathlib import Path

from ..paths import datasets_root
from .dataset import SceneSetConfig, write_scene_set


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m aid_d2.data.synthetic",
        description="Write synthetic road scenes in KITTI's layout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=datasets_root() / "synthetic_road",
        help="directory; the default is what synthetic_road_train and _val read",
    )
    parser.add_argument("--images", type=int, required=True, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=128, help="in pixels")
    parser.add_argument("--width", type=int, default=416, help="in pixels")
    parser.add_argument(
        "--label-noise",
        type=float,
        default=0.0,
        help="fraction of the training objects with a wrong label",
    )
    args = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = args.pop("output")
    try:
        write_scene_set(output, SceneSetConfig(**args))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
