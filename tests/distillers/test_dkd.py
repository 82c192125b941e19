"""Decoupled knowledge distillation against its formulas in plain loops, float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy import as_batch, build, constant_weights, maps, rand, random_weights
from torch import nn

from aid_d2.distillers.dkd import DKD, decoupled_divergence
from aid_d2.modeling.context import DistillContext
from aid_d2.modeling.wrappers.faster_rcnn import FasterRCNNWrapper
from aid_d2.structures import Call, DetectorOutputs, Level, LevelPair, Objects
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

SIZES = {4: (16, 24), 8: (8, 12), 16: (4, 6)}
# Classes with the background, 3.
CLASSES = 4
EVERY_TARGET = torch.arange(8) % CLASSES


def softmax(values):
    e = [math.exp(x - max(values)) for x in values]
    return [x / sum(e) for x in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def reference_parts(student, teacher, target, temperature):
    """TCKD and NCKD of one proposal, from lists of logits."""
    parts = []
    s, t = (softmax([x / temperature for x in logits]) for logits in (student, teacher))
    parts.append(kl([t[target], 1 - t[target]], [s[target], 1 - s[target]]))
    s, t = ([x for i, x in enumerate(p) if i != target] for p in (s, t))
    parts.append(kl([x / sum(t) for x in t], [x / sum(s) for x in s]))
    return [temperature**2 * x for x in parts]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_parts_against_loops(temperature):
    s, t = 3 * rand(8, CLASSES, seed=1), 3 * rand(8, CLASSES, seed=2)
    expected = [
        reference_parts(*x, temperature) for x in zip(s.tolist(), t.tolist(), EVERY_TARGET.tolist())
    ]
    actual = torch.stack(decoupled_divergence(s, t, EVERY_TARGET, temperature), dim=1)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9)


def test_parts_make_up_the_whole_divergence():
    """KL = TCKD + (1 - p of the target) NCKD."""
    s, t = 3 * rand(8, CLASSES, seed=1), 3 * rand(8, CLASSES, seed=2)
    target_part, other_part = decoupled_divergence(s, t, EVERY_TARGET, 1.0)
    for n, target in enumerate(EVERY_TARGET.tolist()):
        p, q = softmax(t[n].tolist()), softmax(s[n].tolist())
        whole = target_part[n].item() + (1 - p[target]) * other_part[n].item()
        assert whole == pytest.approx(kl(p, q), rel=1e-10)


@pytest.mark.parametrize("dtype,rel", [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("z", [100.0, 1e4])
def test_parts_of_certain_classes(z, dtype, rel):
    """Teacher sure of class 0, student of class 1, and both sure of another than the target."""
    t = torch.tensor([[z, 0, 0, 0], [0, 0, 0, z]], dtype=dtype)
    s = torch.tensor([[0, z, 0, 0], [0, 0, 0, z]], dtype=dtype)
    target_part, other_part = decoupled_divergence(s, t, torch.tensor([0, 0]), 1.0)
    # p_t is 1 and e^-z. Of the three other classes the teacher gives each 1/3, the student all to
    # one: 2/3 z - log 3.
    assert target_part.tolist() == pytest.approx([z, 0], rel=rel)
    assert other_part.tolist() == pytest.approx([z * 2 / 3 - math.log(3), 0], rel=rel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 100.0, 1e4])
def test_extreme_logits_give_finite_parts_and_gradients(scale, dtype):
    s = (scale * rand(8, CLASSES, seed=1).sign()).to(dtype).requires_grad_()
    t = (scale * rand(8, CLASSES, seed=2).sign()).to(dtype)
    parts = decoupled_divergence(s, t, EVERY_TARGET, 1.0)
    sum(x.sum() for x in parts).backward()
    assert all(x.isfinite().all() for x in parts) and s.grad.isfinite().all()


def test_a_single_object_class_has_no_other_part():
    s, t = rand(4, 2, seed=1).requires_grad_(), rand(4, 2, seed=2)
    target_part, other_part = decoupled_divergence(s, t, torch.tensor([0, 1, 0, 1]), 1.0)
    (target_part + other_part).sum().backward()
    assert (target_part > 0).all() and (other_part == 0).all() and s.grad.isfinite().all()


@pytest.mark.parametrize("part", [0, 1])
def test_gradients(part):
    s, t = rand(5, CLASSES, seed=1).requires_grad_(), rand(5, CLASSES, seed=2)
    target = EVERY_TARGET[:5]
    assert torch.autograd.gradcheck(lambda s: decoupled_divergence(s, t, target, 2.0)[part], s)


# --- the method

# Of three images, the second without objects and the third without proposals.
TRUTH = Objects(
    boxes=torch.tensor([[10, 10, 50, 50], [40, 20, 80, 60], [5, 5, 20, 20]], dtype=torch.float64),
    classes=torch.tensor([2, 0, 1]),
    counts=[2, 0, 1],
    ignored=[torch.zeros(0, 4)] * 3,
    image_sizes=[(60, 90)] * 3,
)
PROPOSALS = [
    torch.tensor(
        # the first object, about the second, IoU 0.5 with the first and a little less
        [[10, 10, 50, 50], [42, 20, 80, 58], [10, 10, 50, 30], [10, 10, 50, 29.9]],
        dtype=torch.float64,
    ),
    torch.tensor([[10, 10, 50, 50], [0, 0, 90, 60]], dtype=torch.float64),
    torch.zeros(0, 4, dtype=torch.float64),
]
TARGETS = [2, 0, 2, 3, 3, 3]


def matcher():
    return Matcher([0.5], [0, 1], allow_low_quality_matches=False)


class Predictor(FastRCNNOutputLayers):
    def __init__(self, sigmoid):
        nn.Module.__init__(self)
        self.use_sigmoid_ce = sigmoid


class Heads(StandardROIHeads):
    """What DKD asks of the ROI heads."""

    def __init__(self, box_in_features=("p2", "p3", "p4"), several=False, sigmoid=False):
        nn.Module.__init__(self)
        self.box_in_features = box_in_features
        self.box_pooler = nn.Identity()
        self.box_predictor = nn.ModuleList() if several else Predictor(sigmoid)
        self.proposal_matcher = matcher()


class Wrapper:
    """A Faster R-CNN that gives the logits it is told, and notes the boxes it is asked about."""

    box_head_lacks = FasterRCNNWrapper.box_head_lacks

    def __init__(self, logits=None, heads=None, num_classes=CLASSES - 1, strides=tuple(SIZES)):
        self.model = SimpleNamespace(roi_heads=heads or Heads())
        self.num_classes = num_classes
        self.levels = [Level(f"p{s.bit_length() - 1}", s, 4, ("backbone",)) for s in strides]
        self.logits = logits

    def score(self, features, boxes):
        self.asked = boxes
        return self.logits, None


def make(teacher, student=None, **changes):
    pairs = [LevelPair(stride, 4, 4, i) for i, stride in enumerate(SIZES)]
    return build(DKD, DistillContext(student or Wrapper(), teacher, pairs), **changes)


def observe(method, proposals, logits):
    heads = method.student.model.roi_heads
    calls = {
        heads.box_pooler: [Call(([], [Boxes(x) for x in proposals]), None)],
        heads.box_predictor: [Call((), (logits, None))],
    }
    for call in calls[heads.box_pooler]:
        # Boxes are float32 by their class; the toy is not.
        for boxes, tensor in zip(call.inputs[1], proposals):
            boxes.tensor = tensor
    return DetectorOutputs({}, calls=calls)


def run(weights, proposals=PROPOSALS, **changes):
    """Losses, the student's logits, the teacher's detector."""
    count = sum(map(len, proposals))
    teacher = Wrapper(3 * rand(count, CLASSES, seed=2))
    logits = (3 * rand(count, CLASSES, seed=1)).requires_grad_()
    method = make(teacher, **changes)
    losses = method(as_batch(observe(method, proposals, logits), maps(SIZES, 4, 3), weights, TRUTH))
    return losses, logits, teacher


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({}, (1.0, 0.25, 1.0)),
        ({"ALPHA": 0.5, "BETA": 8.0, "TEMPERATURE": 4.0}, (0.5, 8.0, 4.0)),
    ],
    ids=["published", "changed"],
)
def test_losses_against_loops(changes, expected):
    alpha, beta, temperature = expected
    weights = random_weights(maps(SIZES, 4, 3))
    losses, logits, teacher = run(weights, **changes)
    assert all(map(torch.equal, teacher.asked, PROPOSALS))
    parts = np.array(
        [
            reference_parts(*x, temperature)
            for x in zip(logits.tolist(), teacher.logits.tolist(), TARGETS)
        ]
    )
    values = weights.per_box(PROPOSALS).numpy()
    target_part, other_part = (values[:, None] * parts).mean(0)
    assert set(losses) == {"target", "nontarget"}
    assert losses["target"].item() == pytest.approx(alpha * target_part, rel=1e-9)
    assert losses["nontarget"].item() == pytest.approx(beta * other_part, rel=1e-9)


def test_constant_weight_scales_the_losses_and_one_changes_no_bit():
    full, logits, teacher = run(constant_weights(maps(SIZES, 4, 3)))
    weighted, *_ = run(constant_weights(maps(SIZES, 4, 3), 0.3))
    plain = decoupled_divergence(logits, teacher.logits, torch.tensor(TARGETS), 1.0)
    for part, values, factor in zip(("target", "nontarget"), plain, (1.0, 0.25)):
        assert weighted[part].item() == pytest.approx(0.3 * full[part].item(), rel=1e-12)
        assert torch.equal(full[part], factor * (values.sum() / len(values)))


def test_without_proposals_the_losses_are_zeros_with_a_graph():
    losses, logits, _ = run(
        random_weights(maps(SIZES, 4, 3)), proposals=[torch.zeros(0, 4, dtype=torch.float64)] * 3
    )
    sum(losses.values()).backward()
    assert [x.item() for x in losses.values()] == [0.0, 0.0]
    assert logits.grad.shape == (0, CLASSES)


def test_published_constants():
    node = DKD.config()
    assert (node.ALPHA, node.BETA, node.TEMPERATURE) == (1.0, 0.25, 1.0)


@pytest.mark.parametrize(
    "student,teacher,message",
    [
        ({}, {"heads": Heads(several=True)}, "a teacher with .* one box head, not Heads"),
        ({"heads": nn.Identity()}, {}, "a student with .* one box head, not Identity"),
        ({"heads": Heads(sigmoid=True)}, {}, "a student with .*USE_SIGMOID_CE False"),
        ({}, {"num_classes": 80}, "NUM_CLASSES is 3 in the student and 80 in the teacher"),
        ({}, {"heads": Heads(("p2", "p3", "p4", "p9"))}, r"needs the maps .*'p9'"),
    ],
    ids=["cascade", "other heads", "sigmoid", "classes", "box head's levels"],
)
def test_refusals(student, teacher, message):
    with pytest.raises(ValueError, match=f"DKD.*{message}"):
        make(Wrapper(**teacher), Wrapper(**student))


# --- in training


def observed_step(model, batch, seed=0):
    """Losses, the sampled proposals and the student's logits of a training step."""
    heads, seen = model.student.roi_heads, {}
    sample = heads.label_and_sample_proposals

    def keep(*args):
        seen["proposals"] = sample(*args)
        return seen["proposals"]

    heads.label_and_sample_proposals = keep
    handle = heads.box_predictor.register_forward_hook(
        lambda module, inputs, output: seen.update(logits=output[0])
    )
    torch.manual_seed(seed)
    with EventStorage(0):
        losses = model.train()(batch)
    handle.remove()
    heads.label_and_sample_proposals = sample
    return losses, seen["proposals"], seen["logits"]


def test_step_of_a_detector(distilled_cfg, build_seeded, make_batch):
    """The teacher scores the boxes, and the targets are the classes, that the student trains on."""
    changes = {"DISTILL.METHODS": ("DKD",), "DISTILL.AID.ENABLED": False}
    model = build_seeded(distilled_cfg("FasterRCNN", changes), 0)
    batch = make_batch((3, 0))
    losses, proposals, logits = observed_step(model, batch)
    target = torch.cat([x.gt_classes for x in proposals])
    assert len(target.unique()) > 1

    teacher = model.teacher
    with torch.no_grad():
        maps_of_teacher = teacher.model.backbone(teacher.model.preprocess_image(batch).tensor)
        boxes = [x.proposal_boxes.tensor for x in proposals]
        theirs, _ = teacher.wrapper.score(teacher.wrapper.features(maps_of_teacher), boxes)
    parts = np.array(
        [reference_parts(*x, 1.0) for x in zip(logits.tolist(), theirs.tolist(), target.tolist())]
    )
    expected = parts.mean(0)
    assert losses["loss_DKD_target"].item() == pytest.approx(expected[0], rel=1e-5)
    assert losses["loss_DKD_nontarget"].item() == pytest.approx(0.25 * expected[1], rel=1e-5)

    (losses["loss_DKD_target"] + losses["loss_DKD_nontarget"]).backward()
    predictor = model.student.roi_heads.box_predictor
    assert predictor.cls_score.weight.grad.any() and predictor.bbox_pred.weight.grad is None


def test_step_with_every_object_gone(distilled_cfg, build_seeded, make_batch):
    model = build_seeded(distilled_cfg("FasterRCNN", {"DISTILL.METHODS": ("DKD",)}), 0)
    losses, _, _ = observed_step(model, make_batch((0, 0)))
    loss = losses["loss_DKD_target"] + losses["loss_DKD_nontarget"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
