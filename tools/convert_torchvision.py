r"""Makes an ImageNet file of torchvision one that Detectron2 loads into its ResNet.

    python tools/convert_torchvision.py resnet18 output/imagenet/resnet18.pkl

Networks: resnet18, resnet34, resnet50, resnet101, resnext101_32x8d. torchvision downloads its first
ImageNet weights (IMAGENET1K_V1, those of the papers), unless `--weights FILE.pth` has a state dict.
torchvision's networks want these keys in the detector's config:

    MODEL:
      WEIGHTS: output/imagenet/resnet18.pkl
      PIXEL_MEAN: [123.675, 116.28, 103.53]
      PIXEL_STD: [58.395, 57.12, 57.375]
      RESNETS: {STRIDE_IN_1X1: False}
    INPUT: {FORMAT: RGB}
"""

import argparse
import pickle
import re
from pathlib import Path

import torch
import torchvision
from torch import Tensor

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d")

# Names of torchvision's ResNet, and what Detectron2 calls the same.
_RENAMED = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("output", type=Path, metavar="FILE.pkl")
    parser.add_argument("--weights", type=Path, metavar="FILE.pth")
    args = parser.parse_args()
    if args.output.suffix != ".pkl":
        raise ValueError(f"{args.output} has to end in .pkl: so Detectron2 knows the format.")
    if args.output.exists():
        raise FileExistsError(f"{args.output} exists already: remove it, or choose another name.")
    if args.weights is None:
        weights = torchvision.models.get_model(args.network, weights="IMAGENET1K_V1").state_dict()
    else:
        weights = torch.load(args.weights, map_location="cpu", weights_only=True)
        expected = torchvision.models.get_model(args.network).state_dict()
        if weights.keys() != expected.keys():
            raise ValueError(f"--weights {args.weights} is no state dict of a {args.network}.")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(pickle.dumps(convert(weights)))


def convert(weights: dict[str, Tensor]) -> dict:
    """The content of a file for Detectron2's checkpointer, of a state dict of torchvision."""
    arrays = {}
    for name, value in weights.items():
        if not name.startswith("fc."):
            for old, new in _RENAMED:
                name = re.sub(old, new, name)
            arrays[name] = value.numpy()
    return {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}


if __name__ == "__main__":
    main()
