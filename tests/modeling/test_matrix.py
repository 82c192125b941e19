"""Detectors as Detectron2's users have them, as student and as teacher: they take a step,
or one sentence says why not as the model is built.
"""

import pytest
import torch
from torch import nn

from aid_d2.modeling.wrappers import DetectorWrapper, wrap
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import BitMasks, ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage

CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}
C4 = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32]],
}
DC5 = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.ROI_HEADS.IN_FEATURES": ["res5"],
    "MODEL.RPN.IN_FEATURES": ["res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32]],
}
ROTATED = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "RRPN",
    "MODEL.ANCHOR_GENERATOR.NAME": "RotatedAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ANGLES": [[0, 90]],
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1, 1, 1, 1, 1),
    "MODEL.ROI_HEADS.NAME": "RROIHeads",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignRotated",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10, 10, 5, 5, 1),
}
# Each by its base config and what makes it of that.
DETECTORS = {
    "RetinaNet": ("RetinaNet", {}),
    "FCOS": ("FCOS", {}),
    "GFL": ("GFL", {}),
    "Faster R-CNN": ("FasterRCNN", {}),
    "Mask R-CNN": ("FasterRCNN", {"MODEL.MASK_ON": True, "MODEL.ROI_MASK_HEAD.NUM_CONV": 1}),
    "Keypoint R-CNN": (
        "FasterRCNN",
        {"MODEL.KEYPOINT_ON": True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [8]},
    ),
    "Cascade R-CNN": ("FasterRCNN", CASCADE),
    "panoptic FPN": ("FasterRCNN", {"MODEL.META_ARCHITECTURE": "PanopticFPN"}),
    "C4": ("FasterRCNN", C4),
    "DC5": ("FasterRCNN", DC5),
    "RPN alone": ("FasterRCNN", {"MODEL.META_ARCHITECTURE": "ProposalNetwork"}),
    "rotated": ("FasterRCNN", ROTATED),
    "RegNet": ("RetinaNet", {"MODEL.BACKBONE.NAME": "build_retinanet_timm_fpn_backbone"}),
    "DETR-like": ("RetinaNet", {"MODEL.META_ARCHITECTURE": "Queries"}),
}
DETECTORS["RegNet"][1].update({"MODEL.TIMM.NAME": "regnety_002", "MODEL.TIMM.NORM": "BN"})
# Their losses are unknown to AID.
FEATURES_ALONE = {"C4", "RPN alone", "rotated", "DETR-like"}
# Their operators are in Detectron2's compiled part.
NEEDS_EXTENSION = {"rotated"}
HERE = sorted(set(DETECTORS) - NEEDS_EXTENSION)


@META_ARCH_REGISTRY.register()
class Queries(nn.Module):
    """A set of queries that attend to the coarsest map; its images come with a size, as a tuple."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.query = nn.Linear(cfg.MODEL.FPN.OUT_CHANNELS, 4)

    def preprocess_image(self, batched_inputs):
        images = [x["image"].float() for x in batched_inputs]
        return ImageList.from_tensors(images, 32), torch.tensor([x.shape[1:] for x in images])

    def forward(self, batched_inputs):
        images, _ = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        return {"loss_query": self.query(maps["p7"].flatten(2).mean(2)).sigmoid().mean()}


@pytest.fixture(scope="module")
def cfg_of(small_cfg):
    def make(name, changes=None):
        base, own = DETECTORS[name]
        return small_cfg(base, {**own, **(changes or {})})

    return make


@pytest.fixture(scope="module")
def teacher_of(cfg_of, build_seeded, save_teacher):
    files = {}

    def make(name):
        if name not in files:
            cfg = cfg_of(name)
            files[name] = save_teacher(cfg, build_seeded(cfg, 1))
        return files[name]

    return make


@pytest.fixture
def batch(make_batch):
    """With masks, keypoints and the map of a panoptic head, for whom they are."""
    images = make_batch((2, 1), (64, 96))
    for image in images:
        objects: Instances = image["instances"]
        masks = torch.zeros(len(objects), 64, 96, dtype=torch.bool)
        masks[:, 10:40, 10:40] = True
        objects.gt_masks = BitMasks(masks)
        points = torch.full((len(objects), 17, 3), 20.0)
        points[..., 2] = 2
        objects.gt_keypoints = Keypoints(points)
        image["sem_seg"] = torch.zeros(64, 96, dtype=torch.long)
    return images


def distilled(cfg_of, build_seeded, student, files, aid):
    plain = cfg_of(student)
    changes = {
        **files,
        "MODEL.META_ARCHITECTURE": "DistilledDetector",
        "DISTILL.STUDENT": plain.MODEL.META_ARCHITECTURE,
        "DISTILL.METHODS": ("PKD",),
        "DISTILL.AID.ENABLED": aid,
        "DISTILL.AID.PRESET": "PAPER",
    }
    return build_seeded(cfg_of(student, changes), 0)


def check_step(model, batch):
    with EventStorage(0):
        losses = model.train()(batch)
    assert losses["loss_PKD_feature"] > 0
    sum(losses.values()).backward()
    own = [p.grad for p in model.student.backbone.parameters() if p.grad is not None]
    assert own and all(x.isfinite().all() for x in own)


@pytest.mark.parametrize("name", HERE)
def test_as_a_student(cfg_of, teacher_of, build_seeded, batch, name):
    """Of a RetinaNet, with AID."""
    check_step(distilled(cfg_of, build_seeded, name, teacher_of("RetinaNet"), True), batch)


@pytest.mark.parametrize("name", HERE)
def test_as_a_teacher(cfg_of, teacher_of, build_seeded, batch, name):
    """With AID where its losses are known; else without, and with AID one sentence says why."""
    if name in FEATURES_ALONE:
        with pytest.raises((NotImplementedError, ValueError), match="DISTILL.AID.ENABLED False"):
            distilled(cfg_of, build_seeded, "GFL", teacher_of(name), aid=True)
    aid = name not in FEATURES_ALONE
    check_step(distilled(cfg_of, build_seeded, "GFL", teacher_of(name), aid), batch)


def test_rotated_boxes_are_served_by_features_alone(cfg_of, build_seeded):
    wrapper = wrap(build_seeded(cfg_of("rotated"), 0))
    assert type(wrapper) is DetectorWrapper
    with pytest.raises(NotImplementedError, match="GeneralizedRCNN with RRPN and RROIHeads"):
        wrapper.check_losses()


def test_precomputed_proposals_are_served_by_features_alone(cfg_of, build_seeded, batch):
    """Fast R-CNN."""
    changes = {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"}
    wrapper = wrap(build_seeded(cfg_of("Faster R-CNN", changes), 0))
    outputs = wrapper.forward_features(batch, "BGR", with_head=True)
    assert outputs.features[4].shape == (2, 16, 16, 24)
    with pytest.raises(NotImplementedError, match="GeneralizedRCNN with StandardROIHeads"):
        wrapper.check_losses()


def test_an_image_that_would_be_cut_is_told(cfg_of, build_seeded, make_batch):
    """As a ViTDet of a fixed square does it."""
    model = build_seeded(cfg_of("RetinaNet"), 0)

    def square(batched_inputs):
        images = torch.stack([x["image"][:, :64, :64].float() for x in batched_inputs])
        return ImageList(images, [(64, 64)] * len(images))

    model.preprocess_image = square
    with pytest.raises(ValueError, match="64 x 64, and an image is 64 x 96"):
        wrap(model).forward_features(make_batch(), "BGR", with_head=False)


def test_a_model_that_makes_no_input_is_named(cfg_of, build_seeded):
    model = build_seeded(cfg_of("DETR-like"), 0)
    del type(model).preprocess_image
    with pytest.raises(ValueError, match="Queries has neither a method `preprocess_image`"):
        wrap(model)
