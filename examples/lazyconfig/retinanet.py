"""A RetinaNet by LazyConfig, for a teacher or a student: see docs/training.md."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead

LEVELS = ["p3", "p4", "p5", "p6", "p7"]


def retinanet(depth: int, channels: int, num_classes: int):
    """A RetinaNet on a ResNet without bottlenecks (18 or 34)."""
    return L(RetinaNet)(
        backbone=L(FPN)(
            bottom_up=L(ResNet)(
                stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
                stages=L(ResNet.make_default_stages)(depth=depth, norm="FrozenBN"),
                out_features=["res3", "res4", "res5"],
                freeze_at=2,
            ),
            in_features=["res3", "res4", "res5"],
            out_channels=channels,
            top_block=L(LastLevelP6P7)(in_channels=512, out_channels=channels),
        ),
        head=L(RetinaNetHead)(
            input_shape=[ShapeSpec(channels=channels)] * len(LEVELS),
            num_classes=num_classes,
            num_anchors=9,
            conv_dims=[channels] * 4,
        ),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
            offset=0.0,
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        anchor_matcher=L(Matcher)(
            thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        num_classes=num_classes,
        head_in_features=LEVELS,
        focal_loss_alpha=0.25,
        focal_loss_gamma=2.0,
        pixel_mean=[103.53, 116.28, 123.675],
        pixel_std=[1.0, 1.0, 1.0],
        input_format="BGR",
    )


model = retinanet(depth=34, channels=128, num_classes=3)
