"""Fine-grained feature imitation against its formula in NumPy, one object and anchor at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy import as_batch, build, constant_weights, maps, random_weights, shake

from aid_d2.distillers import build_distillers
from aid_d2.distillers.fgfi import FGFI, near_objects
from aid_d2.modeling.context import DistillContext
from aid_d2.modeling.wrappers import DetectorWrapper
from aid_d2.structures import LevelPair, Objects
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

STRIDES = (8, 16, 32)
SIZES = {8: (8, 10), 16: (4, 5), 32: (2, 3)}
RATIOS = (0.5, 1.0, 2.0)
# x1 y1 x2 y2, in images 0 and 2 of three.
BOXES = [[5.0, 6, 25, 30], [20, 8, 70, 60], [60, 40, 66, 45], [0, 0, 79, 63]]
COUNTS = [3, 0, 1]


def objects(boxes=BOXES, counts=COUNTS):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return Objects(boxes, torch.zeros(len(boxes)).long(), counts, [torch.zeros(0, 4)] * len(counts))


def make(channels=(4, 4), paired=STRIDES, offset=0.5, **changes):
    """The student has three levels, of which `paired` have a counterpart."""
    student = SimpleNamespace(
        levels=[SimpleNamespace(stride=stride) for stride in STRIDES],
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[4 * s] for s in STRIDES], aspect_ratios=RATIOS, strides=STRIDES, offset=offset
        ),
    )
    pairs = [LevelPair(s, *channels, i) for i, s in enumerate(STRIDES) if s in paired]
    return build(FGFI, DistillContext(student, None, pairs), **changes)


def run(method, student, teacher, weights, truth):
    losses = method(as_batch(student, teacher, weights, truth))
    return losses["feature"]


def toy_maps(channels=(4, 4), paired=STRIDES, images=3):
    sizes = {stride: SIZES[stride] for stride in paired}
    return maps(sizes, channels[0], images, seed=1), maps(sizes, channels[1], images, seed=2)


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def numpy_masks(paired=STRIDES, offset=0.5, threshold=0.5):
    """By stride (images, H, W) bool."""
    anchors = []
    for stride in paired:
        for y in range(SIZES[stride][0]):
            for x in range(SIZES[stride][1]):
                cx, cy = (x + offset) * stride, (y + offset) * stride
                for ratio in RATIOS:
                    w = 4 * stride / np.sqrt(ratio)
                    h = ratio * w
                    box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
                    anchors.append((stride, y, x, box))
    masks = {stride: np.zeros((len(COUNTS), *SIZES[stride]), bool) for stride in paired}
    boxes = iter(BOXES)
    for image, count in enumerate(COUNTS):
        for _ in range(count):
            box = next(boxes)
            ious = [overlap(anchor[3], box) for anchor in anchors]
            for (stride, y, x, _), iou in zip(anchors, ious):
                masks[stride][image, y, x] |= iou > threshold * max(ious)
    return masks


def numpy_conv3(x, conv):
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    h, w = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    result = bias[:, None, None]
    for i in range(3):
        for j in range(3):
            cut = padded[:, :, i : i + h, j : j + w]
            result = result + np.einsum("oc,nchw->nohw", weight[:, :, i, j], cut)
    return result


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("paired", [STRIDES, (16, 32), (8, 32)], ids=str)
@pytest.mark.parametrize("channels", [(4, 4), (3, 5)], ids=str)
def test_loss_against_numpy(channels, paired, offset):
    student, teacher = toy_maps(channels, paired)
    weights = random_weights(teacher)
    method = shake(make(channels, paired, offset))
    masks = numpy_masks(paired, offset)
    total = count = 0.0
    for stride in paired:
        adapted = numpy_conv3(student[stride].numpy(), method.adapters[stride])
        squares = weights.maps[stride].numpy() * (teacher[stride].numpy() - adapted) ** 2
        total += np.sum(masks[stride][:, None] * squares)
        count += masks[stride].sum()
    assert count > 0
    # The published weight is .01.
    loss = run(method, student, teacher, weights, objects())
    assert loss.item() == pytest.approx(0.01 * total / (2 * count), rel=1e-10)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_near_objects(threshold):
    anchors = make().student.anchor_generator([x for x in toy_maps()[0].values()])
    near = near_objects(torch.tensor(BOXES[:3]), Boxes.cat(anchors), threshold)
    levels = near.split([len(x) for x in anchors])
    for (stride, mask), level in zip(numpy_masks(threshold=threshold).items(), levels):
        actual = level.view(*SIZES[stride], len(RATIOS)).any(-1).numpy()
        assert (actual == mask[0]).all()


def test_an_object_without_area_or_outside_all_anchors_is_near_nothing():
    anchors = Boxes(torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]]))
    boxes = torch.tensor([[2.0, 2, 2, 2], [100, 100, 120, 120]])
    assert not near_objects(boxes, anchors, 0.5).any()
    assert near_objects(torch.zeros(0, 4), anchors, 0.5).tolist() == [False, False]


def test_an_object_is_imitated_at_the_levels_of_its_size():
    """Whose anchors have sides of 32, 64 and 128."""
    method, student = make(), toy_maps(images=1)[0]
    for box, stride in (([10.0, 10, 40, 40], 8), ([0.0, 0, 79, 63], 16), ([0.0, 0, 120, 120], 32)):
        masks = method._masks(student, objects([box], [1]))
        assert [s for s, mask in masks.items() if mask.any()] == [stride]


@pytest.mark.parametrize("truth", [objects([], [0, 0, 0]), objects([[3.0, 3, 3, 3]], [0, 1, 0])])
def test_without_objects_the_loss_is_a_zero_that_trains_nothing(truth):
    student, teacher = toy_maps()
    student = {s: x.requires_grad_() for s, x in student.items()}
    method = shake(make())
    loss = run(method, student, teacher, constant_weights(teacher), truth)
    loss.backward()
    assert loss.item() == 0
    assert all((x.grad == 0).all() for x in [*student.values(), *method.parameters()])


@pytest.mark.parametrize("weight", [0.3, 1e-3])
def test_constant_weight_scales_the_loss(weight):
    student, teacher = toy_maps()
    method = shake(make())
    full = run(method, student, teacher, constant_weights(teacher), objects())
    weighted = run(method, student, teacher, constant_weights(teacher, weight), objects())
    assert weighted.item() == pytest.approx(weight * full.item(), rel=1e-12)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    teacher = {s: x.float() for s, x in toy_maps()[1].items()}
    student = {s: x.clone().requires_grad_() for s, x in teacher.items()}
    method = make().float()
    loss = run(method, student, teacher, random_weights(teacher), objects())
    loss.backward()
    assert loss.item() == 0
    assert all((x.grad == 0).all() for x in [*student.values(), *method.parameters()])


@pytest.mark.parametrize("scale", [0.0, 1e-20, 65504.0])
def test_extreme_maps_give_a_finite_loss_and_gradients(scale):
    student, teacher = toy_maps()
    student = {s: (scale * x).float().requires_grad_() for s, x in student.items()}
    teacher = {s: (-scale * x).float() for s, x in teacher.items()}
    method = make().float()
    loss = run(method, student, teacher, constant_weights(teacher, 1e-35), objects())
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in [*student.values(), *method.parameters()])


def test_step_on_fcos(distilled_cfg, build_seeded, make_batch):
    """Also on a batch where no image has an object: every adapter takes part."""
    cfg = distilled_cfg("FCOS", {"DISTILL.METHODS": ("FGFI",)})
    model = build_seeded(cfg, seed=0).train()
    for counts in ((2, 1), (0, 0)):
        model.zero_grad()
        with EventStorage(0):
            losses = model(make_batch(counts))
        sum(losses.values()).backward()
        assert (losses["loss_FGFI_feature"] > 0) == (sum(counts) > 0)
        assert all(p.grad.isfinite().all() for p in model.distiller.parameters())


def test_teacher_of_another_wrapper_and_levels(distilled_cfg, build_seeded, make_batch):
    """A Faster R-CNN student has p3 to p5 in common with a RetinaNet teacher, but not its p2."""
    cfg = distilled_cfg("FasterRCNN", {"DISTILL.METHODS": ("FGFI",)}, teacher="RetinaNet")
    model = build_seeded(cfg, seed=0).train()
    assert [pair.stride for pair in model.context.pairs] == [8, 16, 32]
    with EventStorage(0):
        assert model(make_batch())["loss_FGFI_feature"] > 0


def test_a_student_without_known_anchors_is_refused(small_cfg, build_seeded):
    cfg = small_cfg("RetinaNet", {"DISTILL.METHODS": ("FGFI",)})
    unknown = DetectorWrapper(build_seeded(cfg, seed=0))
    with pytest.raises(ValueError, match="FGFI.*RetinaNet student.*anchor_generator.*PKD"):
        build_distillers(cfg, DistillContext(unknown, unknown, [LevelPair(8, 4, 4, 0)]))
