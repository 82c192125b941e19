"""Random maps, weights and batches on which a distiller runs without detectors, float64."""

from types import SimpleNamespace

import numpy as np
import torch

from aid_d2.modeling.context import DistillContext
from aid_d2.structures import DetectorOutputs, DistillBatch, DistillWeights, LevelPair, Objects


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def maps(sizes, channels, images=2, seed=0):
    """Maps (images, channels, *size) by stride, from sizes by stride."""
    return {
        stride: rand(images, channels, *size, seed=seed + stride) for stride, size in sizes.items()
    }


def constant_weights(features, weight=1.0):
    return DistillWeights(
        {stride: torch.full_like(x[:, :1], weight) for stride, x in features.items()}
    )


def random_weights(features, seed=9):
    return DistillWeights(
        {s: rand(*x[:, :1].shape, seed=seed + s).sigmoid() for s, x in features.items()}
    )


def context(strides, channels=(4, 4), detector="RetinaNet"):
    """For maps of (student, teacher) channels, both detectors being of one meta-architecture."""
    wrapper = SimpleNamespace(
        two_stage=detector == "GeneralizedRCNN", detector=type(detector, (), {})
    )
    pairs = [LevelPair(stride, *channels, i) for i, stride in enumerate(strides)]
    return DistillContext(wrapper, wrapper, pairs)


# x1 y1 x2 y2: a small one over a large one in the first image, one in the second.
BOXES = [[2.0, 2, 30, 30], [10, 10, 17, 15], [20, 4, 46, 22]]


def some_objects():
    """Those of BOXES, in two images."""
    boxes = torch.tensor(BOXES)
    return Objects(boxes, torch.zeros(3, dtype=torch.int64), [2, 1], [torch.zeros(0, 4)] * 2)


def no_objects(images=2):
    """Ground truth of images without objects."""
    boxes, classes = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return Objects(boxes, classes, [0] * images, [boxes] * images, [(16, 16)] * images)


def as_batch(student, teacher, weights=None, objects=None):
    """A batch of maps by stride, or of whole outputs."""
    student, teacher = (
        x if isinstance(x, DetectorOutputs) else DetectorOutputs(x) for x in (student, teacher)
    )
    return DistillBatch(student, teacher, objects, weights)


def build(method, context, **changes):
    """The method with its published keys, but for the changes, in float64."""
    node = method.config()
    for key, value in changes.items():
        setattr(node, key, value)
    return method(node, context).double()


def shake(module, seed=0):
    """Random parameters, since adapters may start as the identity."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(rand(*p.shape, seed=seed + i) / 2)
    return module


def numpy_softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def numpy_attentions(x, temperature):
    """In space (H, W) and in channels (C,), of one image (C, H, W)."""
    space = numpy_softmax(np.abs(x).mean(0) / temperature) * x[0].size
    return space, numpy_softmax(np.abs(x).mean((1, 2)) / temperature) * len(x)
