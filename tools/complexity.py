r"""Parameters and multiply-accumulates of detectors, part by part.

    python tools/complexity.py --size 224 224 configs/kitti/gfl_R_{50,101}.yaml

What is counted:

* Parameters: trainable ones. Those that the config freezes and the affine part of a frozen batch
  norm are left out; counting the latter, as mmdetection does, gives 0.05 M (R50) or 0.10 M (R101)
  more.
* MACs: of convolutions, linear layers and matrix products, of one image of the given size, enlarged
  to what the pyramid can divide. Norms, activations, resampling, RoIAlign, decoding and NMS have
  none.
* The box head of a Faster R-CNN sees `--proposals` boxes, whatever the RPN would propose.
* Of a distilled config both the student and the teacher, without the distillers. No weights are
  loaded.

The table of the AID paper has 11 classes and torchvision's kind of ResNet; by

    python tools/complexity.py --size 224 224 \
        configs/coco_traffic/{gfl,faster_rcnn}_R_{50,101}.yaml \
        --opts MODEL.GFL.NUM_CLASSES 11 MODEL.ROI_HEADS.NUM_CLASSES 11 \
        MODEL.RESNETS.STRIDE_IN_1X1 False

all of its figures come out within 1%. As they stand, these configs have 1 to 3% fewer MACs: the
weights they start from want the stride in the first 1x1 convolution of a block, not in the 3x3.
"""

import argparse
import logging
import math

import torch
from fvcore.nn import FlopCountAnalysis
from tabulate import tabulate
from torch import nn

from aid_d2.config import DISTILLED, load_config, plain_student
from aid_d2.modeling.teacher import load_teacher_config
from aid_d2.modeling.wrappers import wrap
from detectron2.config import CfgNode
from detectron2.modeling import build_model

# fvcore gives these numbers of operations too, but they multiply and accumulate nothing.
_NOT_COUNTED = (
    *("aten::batch_norm", "aten::group_norm", "aten::layer_norm", "aten::instance_norm"),
    *("aten::upsample_nearest2d", "aten::upsample_bilinear2d", "aten::adaptive_avg_pool2d"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1344), metavar=("H", "W"))
    parser.add_argument("--proposals", type=int, default=1000, help="of a two-stage detector")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="set in every config"
    )
    args = parser.parse_args()
    # Detectron2 logs the state of layers that are not loaded.
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    rows = []
    for config in args.configs:
        for who, cfg in detectors(config, args.opts).items():
            label = f"{config} ({who})" if who else config
            for part, (parameters, macs) in complexity(cfg, args.size, args.proposals).items():
                rows.append([label, part, parameters / 1e6, macs / 1e9])
                label = ""
    headers = ["config", "part", "parameters (M)", "MACs (G)"]
    print(tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".2f"))


def detectors(config: str, opts: list[str]) -> dict[str, CfgNode]:
    """The plain detectors of a config file: itself, or student and teacher of a distilled one.

    Args:
        config: a yaml file.
        opts: keys and values to be set in each.

    Returns:
        configs by role; the role of a plain detector is "".
    """
    cfg = load_config(config)
    result = {"": cfg}
    if cfg.MODEL.META_ARCHITECTURE == DISTILLED:
        teacher = load_teacher_config(cfg)
        result = {"student": plain_student(cfg), "teacher": teacher}
    for plain in result.values():
        plain.merge_from_list(opts)
        plain.MODEL.DEVICE = "cpu"
    return result


@torch.no_grad()
def complexity(
    cfg: CfgNode, size: tuple[int, int], proposals: int = 1000
) -> dict[str, tuple[int, int]]:
    """Trainable parameters and MACs of a plain detector.

    Args:
        cfg: its config.
        size: height and width of the image in pixels.
        proposals: boxes for the second stage of a Faster R-CNN.

    Returns:
        (parameters, MACs) of each part, and of all of them under `total`. What is outside the
        backbone of a detector whose wrapper aid_d2 does not know counts with its parameters only.
    """
    model = build_model(cfg).eval()
    wrapper = wrap(model)
    backbone = model.backbone
    step = max(backbone.size_divisibility, 1)
    height, width = (step * math.ceil(side / step) for side in size)
    image = torch.zeros(1, len(cfg.MODEL.PIXEL_MEAN), height, width)

    of_backbone = _analysis(backbone, image)
    parts = {"backbone": (_trainable(backbone), of_backbone.total())}
    if hasattr(backbone, "bottom_up"):
        inner = _trainable(backbone.bottom_up), of_backbone.by_module()["bottom_up"]
        parts = {
            "backbone": inner,
            "neck": tuple(a - b for a, b in zip(parts["backbone"], inner)),
        }
    if wrapper.head is not None:
        maps = backbone(image)
        head = _OfMaps(wrapper.head)
        macs = _analysis(head, *(maps[name] for name in wrapper.in_features)).total()
        parts["RPN" if wrapper.two_stage else "head"] = _trainable(head), macs
    if wrapper.two_stage:
        heads = model.roi_heads
        box_head = nn.Sequential(heads.box_head, heads.box_predictor)
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = backbone.output_shape()[heads.box_in_features[0]].channels
        boxes = torch.zeros(proposals, channels, side, side)
        parts["box head"] = _trainable(box_head), _analysis(box_head, boxes).total()
    others = _trainable(model) - sum(parameters for parameters, _ in parts.values())
    if others:
        parts["others"] = others, 0
    parts["total"] = tuple(sum(column) for column in zip(*parts.values()))
    return parts


class _OfMaps(nn.Module):
    """A head of a list of maps, called with the maps: tracing takes tensors alone."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, *maps):
        return self.head(list(maps))


def _analysis(module: nn.Module, *inputs: torch.Tensor) -> FlopCountAnalysis:
    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.set_op_handle(**{name: _no_macs for name in _NOT_COUNTED})


def _no_macs(inputs, outputs) -> int:
    return 0


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


if __name__ == "__main__":
    main()
