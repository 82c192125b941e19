"""Parameters and multiply-accumulates of detectors, part by part."""

import math

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import StandardROIHeads

from ..config import DISTILLED, load_config, plain_student
from ..modeling.teacher import load_teacher_config
from ..modeling.wrappers import wrap

# fvcore gives these numbers of operations too, but they multiply and accumulate nothing.
_NOT_COUNTED = (
    "aten::batch_norm",
    "aten::group_norm",
    "aten::layer_norm",
    "aten::instance_norm",
    "aten::upsample_nearest2d",
    "aten::upsample_bilinear2d",
    "aten::adaptive_avg_pool2d",
)


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
    return result


@torch.no_grad()
def complexity(
    cfg: CfgNode, size: tuple[int, int], proposals: int = 1000, detections: int = 100
) -> dict[str, tuple[int, int]]:
    """Trainable parameters and MACs of a plain detector, counted on the CPU.

    Args:
        cfg: its config.
        size: height and width of the image in pixels.
        proposals: boxes for the second stage of a Faster R-CNN, each stage of a cascade.
        detections: boxes for the mask head of a Mask R-CNN.

    Returns:
        (parameters, MACs) of each part, and of all of them under `total`. What is outside the
        backbone of a detector whose wrapper aid_d2 does not know counts with its parameters only.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
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
    heads = getattr(model, "roi_heads", None)
    if wrapper.two_stage and isinstance(heads, StandardROIHeads):
        stages = [nn.Sequential(*x) for x in wrapper.box_stages]
        boxes = _pooled(model, heads.box_in_features, cfg.MODEL.ROI_BOX_HEAD, proposals)
        macs = sum(_analysis(stage, boxes).total() for stage in stages)
        parts["box head"] = sum(map(_trainable, stages)), macs
        if heads.mask_on:
            found = _pooled(model, heads.mask_in_features, cfg.MODEL.ROI_MASK_HEAD, detections)
            layers = _Layers(heads.mask_head)
            parts["mask head"] = _trainable(layers), _analysis(layers, found).total()
    others = _trainable(model) - sum(parameters for parameters, _ in parts.values())
    if others:
        parts["others"] = others, 0
    parts["total"] = tuple(sum(column) for column in zip(*parts.values()))
    return parts


def _pooled(model: nn.Module, names: list[str], node: CfgNode, count: int) -> torch.Tensor:
    """What RoIAlign makes of boxes."""
    channels = model.backbone.output_shape()[names[0]].channels
    return torch.zeros(count, channels, node.POOLER_RESOLUTION, node.POOLER_RESOLUTION)


class _Layers(nn.Module):
    """A mask head without what it makes of its logits."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head.layers(x)


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
