"""Detectors without a backbone, for tests of what comes after it."""

from aid_d2.modeling.wrappers import wrap
from helpers.toy import maps, rand
from detectron2.modeling import BACKBONE_REGISTRY, Backbone


@BACKBONE_REGISTRY.register()
class PyramidOfShapes(Backbone):
    """No backbone at all: only the shapes of the maps that a detector's head is built for."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        first = 2 if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" else 3
        self._out_features = [f"p{i}" for i in range(first, first + 5)]
        self._out_feature_strides = {f"p{i}": 2**i for i in range(first, first + 5)}
        self._out_feature_channels = dict.fromkeys(self._out_features, cfg.MODEL.FPN.OUT_CHANNELS)

    def forward(self, x):
        raise NotImplementedError


def wrapper_without_backbone(cfg, build_seeded, seed=0):
    """The wrapper of a detector whose head says something else everywhere."""
    cfg.MODEL.BACKBONE.NAME = "PyramidOfShapes"
    wrapper = wrap(build_seeded(cfg, seed).eval())
    for i, p in enumerate(wrapper.model.parameters()):
        p.data.add_(0.1 * rand(*p.shape, seed=seed + i).float())
    return wrapper


def features_of(wrapper, width, seed, images=2):
    """A map per level for images of 64x96."""
    shape = {x.stride: (max(64 // x.stride, 1), max(96 // x.stride, 1)) for x in wrapper.levels}
    return {s: x.float() for s, x in maps(shape, width, images, seed).items()}
