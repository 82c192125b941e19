"""`aid-d2 complexity`: layers counted by hand, and the table of the AID paper's code."""

import pytest
import timm
from torch import nn

from aid_d2 import add_aid_config
from aid_d2.cli import main
from aid_d2.deploy import complexity
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

# Of 11 classes, as the table counts, with torchvision's place of the stride.
OF_THE_TABLE = [
    *("MODEL.GFL.NUM_CLASSES", "11", "MODEL.ROI_HEADS.NUM_CLASSES", "11"),
    *("MODEL.RESNETS.STRIDE_IN_1X1", "False"),
]


class TwoLayers(Backbone):
    """A 3x3 convolution of stride 2, which is frozen, and a 1x1 convolution with a norm."""

    size_divisibility = 4

    def __init__(self, *args):
        super().__init__()
        self.frozen = nn.Conv2d(3, 8, 3, stride=2, padding=1).requires_grad_(False)
        self.trained = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x):
        return {"p3": self.trained(self.frozen(x))}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=16, stride=2)}


def test_counts_by_hand(monkeypatch):
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "TwoLayers", TwoLayers)
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "GFL", "TwoLayers"
    cfg.MODEL.GFL.IN_FEATURES, cfg.MODEL.GFL.NUM_CONVS, cfg.MODEL.GFL.NUM_CLASSES = ["p3"], 1, 5
    # 6x7 is enlarged to 8x8, and its map is 4x4.
    parts = complexity.complexity(cfg, (6, 7))
    cells = 4 * 4
    backbone = (8 * 16 + 16) + 2 * 16, cells * (3 * 9 * 8 + 8 * 16)
    tower = 16 * 9 * 16
    predictors = 16 * 9 * (5 + 68)
    # A tower's convolution has no bias but a norm's scale and shift, the predictors have biases,
    # and the level has its scale.
    head = 2 * (tower + 2 * 16) + predictors + 5 + 68 + 1, cells * (2 * tower + predictors)
    assert parts == {
        "backbone": backbone,
        "head": head,
        "total": (backbone[0] + head[0], backbone[1] + head[1]),
    }


def test_second_stage_by_hand_and_in_proportion_to_its_proposals():
    cfg = complexity.detectors(
        "configs/kitti/faster_rcnn_R_50.yaml",
        ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"],
    )[""]
    layers = [(16 * 7 * 7, 32), (32, 32), (32, 3 + 1), (32, 4 * 3)]
    few, many = (complexity.complexity(cfg, (64, 64), number) for number in (1, 1000))
    for parts, number in ((few, 1), (many, 1000)):
        assert parts["box head"] == (
            sum(i * o + o for i, o in layers),
            number * sum(i * o for i, o in layers),
        )
    assert few["RPN"] == many["RPN"] and few["neck"] == many["neck"]


@pytest.mark.parametrize(
    "name, parameters, macs",
    [
        ("gfl_R_50", 32.06, 10.07),
        ("gfl_R_101", 51.05, 13.79),
        ("faster_rcnn_R_50", 41.17, 23.40),
        ("faster_rcnn_R_101", 60.17, 27.13),
    ],
)
def test_table_of_the_paper(name, parameters, macs):
    cfg = complexity.detectors(f"configs/coco_traffic/{name}.yaml", OF_THE_TABLE)[""]
    total = complexity.complexity(cfg, (224, 224))["total"]
    assert total[0] / 1e6 == pytest.approx(parameters, rel=0.01)
    assert total[1] / 1e9 == pytest.approx(macs, rel=0.01)


def test_a_cascade_and_a_mask_head_by_hand():
    opts = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"]
    opts += ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"]
    opts += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "MODEL.MASK_ON", "True"]
    opts += ["MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]
    cfg = complexity.detectors("configs/kitti/faster_rcnn_R_50.yaml", opts)[""]
    parts = complexity.complexity(cfg, (64, 64), proposals=5, detections=2)
    layers = [(16 * 7 * 7, 32), (32, 32), (32, 3 + 1), (32, 4)]
    assert parts["box head"] == (
        3 * sum(i * o + o for i, o in layers),
        3 * 5 * sum(i * o for i, o in layers),
    )
    side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
    per_cell = 16 * 9 * 8 + 8 * 2 * 2 * 8 + 4 * 8 * 3  # convolution, deconvolution, predictor
    assert parts["mask head"] == (
        16 * 9 * 8 + 8 + 8 * 4 * 8 + 8 + 8 * 3 + 3,
        2 * side * side * per_cell,
    )


def test_a_network_of_timm(capsys):
    """Parameters as timm has them, but for the frozen ones."""
    config = "configs/kitti/gfl_lite0_C64.yaml"
    opts = ["MODEL.TIMM.PRETRAINED", "False", "MODEL.BACKBONE.FREEZE_AT", "1"]
    opts += ["MODEL.TIMM.NORM", "BN"]
    assert main(["complexity", "--size", "64", "64", config, "--opts", *opts]) == 0
    backbone = capsys.readouterr().out.splitlines()[2].split("|")
    network = timm.create_model("tf_efficientnet_lite0", features_only=True)
    frozen = network.conv_stem, network.bn1, network.blocks[0]
    size = sum(p.numel() for p in network.parameters())
    trained = size - sum(p.numel() for x in frozen for p in x.parameters())
    assert float(backbone[3]) == pytest.approx(trained / 1e6, abs=0.006)


def test_distilled_config_prints_student_and_teacher(capsys):
    config = "configs/kitti/retinanet_R_50_aid.yaml"
    narrow = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"]
    assert main(["complexity", "--size", "64", "64", config, "--opts", *narrow]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == [
        *("backbone", "neck", "head", "total"),
        *("backbone", "neck", "head", "total"),
    ]
    assert f"{config} (student)" in lines[2] and f"{config} (teacher)" in lines[6]
    student, teacher = (float(lines[i].split("|")[3]) for i in (2, 6))
    assert teacher > student > 0
