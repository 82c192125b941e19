"""GKD against its formulas in NumPy, one cell and one object at a time."""

import numpy as np
import pytest
import torch
from helpers.detectors import features_of, wrapper_without_backbone
from helpers.toy import (
    BOXES,
    as_batch,
    constant_weights,
    maps,
    no_objects,
    numpy_attentions,
    random_weights,
    shake,
    some_objects,
)

from aid_d2.distillers import gkd
from aid_d2.distillers.dist2 import detection_loss
from aid_d2.distillers.gkd import GKD, box_masks, gradient_map, task_gradients
from aid_d2.modeling.context import pair_levels
from aid_d2.modeling.wrappers import DetectorWrapper
from aid_d2.structures import DistillWeights, Objects

# The cells of each level of the detectors here, for images of 64x96.
SIZES = {8: (8, 12), 16: (4, 6), 32: (2, 3), 64: (1, 1), 128: (1, 1)}
WEIGHTS = {"gradient": 0.5, "feature": 1e-3, "attention": 1e-3}
IMAGES = [0, 0, 1]


@pytest.fixture(scope="module")
def detector_of(small_cfg, build_seeded):
    def make(name="RetinaNet", seed=0, width=4, **changes):
        return wrapper_without_backbone(
            small_cfg(name, {"MODEL.FPN.OUT_CHANNELS": width, **changes}), build_seeded, seed
        )

    return make


def method_of(student, teacher):
    torch.manual_seed(0)
    config = GKD.config()
    config.FEATURE_WEIGHT = config.ATTENTION_WEIGHT = 1e-3
    return GKD(config, pair_levels(student, teacher))


def as_float(weights):
    return DistillWeights({s: x.float() for s, x in weights.maps.items()})


def numpy_mask(stride):
    """(2, H, W)"""
    mask = np.zeros((2, *SIZES[stride]))
    for image, box in zip(IMAGES, BOXES):
        x1, y1 = (np.floor(v / stride) for v in box[:2])
        x2, y2 = (np.ceil(v / stride) for v in box[2:])
        w, h = 2 * (x2 - x1), 2 * (y2 - y1)
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        for i, j in np.ndindex(*SIZES[stride]):
            y, x = i + 0.5, j + 0.5
            if x1 < x < x2 and y1 < y < y2:
                value = 1.0
            elif abs(x - cx) <= w / 2 and abs(y - cy) <= h / 2:
                value = np.exp(-0.5 * ((x - cx) / (w / 2)) ** 2 - 0.5 * ((y - cy) / (h / 2)) ** 2)
            else:
                value = 0.0
            mask[image, i, j] = max(mask[image, i, j], value / (w * h))
    return mask


def numpy_gradient_map(features, gradient):
    """(H, W) of one image."""
    found = np.maximum((gradient.sum((1, 2))[:, None, None] * features).sum(0), 0)
    return found / (found.max() + 1e-7)


@pytest.mark.parametrize("stride", SIZES)
def test_masks_cell_by_cell(stride):
    mask = box_masks(some_objects(), stride, *SIZES[stride])
    np.testing.assert_allclose(mask[:, 0].numpy(), numpy_mask(stride), rtol=1e-5)
    assert not box_masks(no_objects(), stride, *SIZES[stride]).any()


def test_gradient_maps_cell_by_cell():
    features, gradient = (maps({8: (5, 6)}, 4, seed=i)[8] for i in (1, 2))
    # What lowers the loss everywhere shows nothing.
    features[1], gradient[1] = features[1].abs(), -gradient[1].abs()
    found = gradient_map(features, gradient)[:, 0]
    for n in range(2):
        expected = numpy_gradient_map(features[n].numpy(), gradient[n].numpy())
        np.testing.assert_allclose(found[n].numpy(), expected, rtol=1e-9)
    assert found[0].max() == pytest.approx(1, abs=1e-5) and not found[1].any()


def test_gradient_maps_are_0_where_the_loss_depends_on_nothing():
    """And so is the gradient of what compares them, however sharp the map is."""
    features, gradient = (maps({8: (5, 6)}, 4, seed=i)[8] for i in (1, 2))
    assert gradient_map(features, 1e-14 * gradient).max() < 1e-4
    features = (1e-20 * features).requires_grad_()
    gradient_map(features, gradient).sum().backward()
    assert features.grad.abs().max() < 1e8


@pytest.mark.parametrize("name", ["RetinaNet", "GFL"])
def test_gradient_of_the_guidance_against_finite_differences(detector_of, name, monkeypatch):
    """Of the student's map; how much the task depends on it counts as constant."""
    wrappers = detector_of(name), detector_of(name, seed=50)
    student, teacher = (features_of(w, 4, seed=i) for i, w in enumerate(wrappers))
    objects = some_objects()
    fixed = {w: task_gradients(w, x, objects) for w, x in zip(wrappers, (student, teacher))}
    monkeypatch.setattr(gkd, "task_gradients", lambda wrapper, *args: fixed[wrapper])
    method, weights = GKD(GKD.config(), pair_levels(*wrappers)), constant_weights(teacher)

    def loss(features):
        return method(as_batch(features, teacher, weights, objects))["gradient"]

    leaves = {s: x.double().requires_grad_() for s, x in student.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    norm = torch.cat([x.flatten() for x in found]).norm()
    moved = [
        {s: x.double() + sign * 1e-6 * g / norm for (s, x), g in zip(student.items(), found)}
        for sign in (1, -1)
    ]
    slope = (loss(moved[0]) - loss(moved[1])) / 2e-6
    assert slope.item() == pytest.approx(norm.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "FasterRCNN"])
def test_task_gradients_against_finite_differences(detector_of, name):
    """Along the gradient. GFL's loss has weights without gradient."""
    wrapper = detector_of(name)
    features, objects = features_of(wrapper, 4, seed=1), some_objects()
    gradient = task_gradients(wrapper, features, objects)
    norm = torch.cat([x.flatten() for x in gradient.values()]).norm()
    step, losses = 0.02, []
    for sign in (1, -1):
        moved = {s: x + sign * step * gradient[s] / norm for s, x in features.items()}
        unreduced = wrapper.unreduced_losses(moved, wrapper.head(list(moved.values())), objects)
        # Times two images.
        losses.append(2 * detection_loss(unreduced, DistillWeights.full(moved)).item())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(norm.item(), rel=0.03)
    assert all(p.grad is None for p in wrapper.model.parameters())


def test_a_map_does_not_depend_on_how_many_images_there_are(detector_of):
    """Nor on the constant that is added to its maximum: that of the same image eight times."""
    wrapper = detector_of("RetinaNet")
    truth = some_objects()
    found = []
    for count in (1, 8):
        features = {s: x[:1].repeat(count, 1, 1, 1) for s, x in features_of(wrapper, 4, 1).items()}
        objects = Objects(
            boxes=truth.boxes[:2].repeat(count, 1),
            classes=truth.classes[:2].repeat(count),
            counts=[2] * count,
            ignored=truth.ignored[:1] * count,
            image_sizes=truth.image_sizes[:1] * count,
        )
        gradients = task_gradients(wrapper, features, objects)
        found.append({s: gradient_map(x, gradients[s])[0] for s, x in features.items()})
    assert any(x.max() > 0.99 for x in found[0].values())
    for one, other in zip(found[0].values(), found[1].values()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_task_gradients_change_no_statistics(detector_of):
    wrapper = detector_of("RetinaNet", **{"MODEL.RETINANET.NORM": "BN"})
    wrapper.model.train()
    before = {k: x.clone() for k, x in wrapper.model.state_dict().items()}
    with torch.no_grad():  # as PreciseBN does
        found = task_gradients(wrapper, features_of(wrapper, 4, seed=1), some_objects())
    assert any(x.any() for x in found.values())
    assert any("running_mean" in key for key in before) and wrapper.model.training
    assert all(torch.equal(x, before[k]) for k, x in wrapper.model.state_dict().items())


@pytest.mark.parametrize("width", [4, 6])
def test_losses_against_numpy(detector_of, monkeypatch, width):
    wrappers = detector_of(width=width), detector_of(seed=50)
    method = shake(method_of(*wrappers).double())
    student, teacher = maps(SIZES, width, seed=1), maps(SIZES, 4, seed=2)
    gradients = {w: maps(SIZES, n, seed=i) for w, n, i in zip(wrappers, (width, 4), (30, 60))}

    def given(wrapper, features, objects):
        assert features is (student if wrapper is wrappers[0] else teacher)
        return gradients[wrapper]

    monkeypatch.setattr(gkd, "task_gradients", given)
    weights, expected = random_weights(teacher), dict.fromkeys(WEIGHTS, 0.0)
    for stride, size in SIZES.items():
        adapted = method.adapters[stride](student[stride]).detach().numpy()
        for n, mask in enumerate(numpy_mask(stride)):
            s, t, w = adapted[n], teacher[stride][n].numpy(), weights.maps[stride][n, 0].numpy()
            theirs, own = (
                numpy_gradient_map(x[stride][n].numpy(), gradients[wrapper][stride][n].numpy())
                for x, wrapper in ((teacher, wrappers[1]), (student, wrappers[0]))
            )
            expected["gradient"] += (w * np.abs(theirs - own)).sum() / (2 * size[0] * size[1])
            (space_s, channels_s), (space_t, channels_t) = (
                numpy_attentions(x, 0.5) for x in (s, t)
            )
            difference = channels_t[:, None, None] * space_t * (t - s) ** 2
            expected["feature"] += (w * mask * difference).sum() / 2
            pooled = (w * space_t).sum() / space_t.sum()
            expected["attention"] += pooled * np.abs(channels_s - channels_t).sum() / 2
            expected["attention"] += (w * np.abs(space_s - space_t)).sum() / 2
    losses = method(as_batch(student, teacher, weights, some_objects()))
    for part, weight in WEIGHTS.items():
        # The masks are float32.
        assert losses[part].item() == pytest.approx(weight * expected[part], rel=1e-6), part


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "GFL", "FasterRCNN"])
def test_gradient_reaches_the_student_and_no_parameter_of_the_detectors(detector_of, name):
    wrappers = detector_of(name), detector_of(name, seed=50)
    student, teacher = (features_of(w, 4, seed=i) for i, w in enumerate(wrappers))
    for x in student.values():
        x.requires_grad_()
    losses = method_of(*wrappers)(
        as_batch(student, teacher, constant_weights(teacher), some_objects())
    )
    for part, loss in losses.items():
        reached = torch.autograd.grad(
            loss, list(student.values()), retain_graph=True, materialize_grads=True
        )
        assert loss > 0 and all(x.isfinite().all() for x in reached)
        assert any(x.any() for x in reached), part
    assert all(p.grad is None for w in wrappers for p in w.model.parameters())


def test_without_imitation_there_are_no_adapters(detector_of):
    """As in the released configs, and by default."""
    wrappers = detector_of(width=6), detector_of(seed=50)
    method = GKD(GKD.config(), pair_levels(*wrappers))
    student, teacher = features_of(wrappers[0], 6, seed=1), features_of(wrappers[1], 4, seed=2)
    losses = method(as_batch(student, teacher, constant_weights(teacher), some_objects()))
    assert losses.keys() == {"gradient"} and losses["gradient"] > 0
    assert not list(method.parameters())


def test_constant_weight_scales_each_loss(detector_of):
    wrappers = detector_of(), detector_of(seed=50)
    student, teacher = (features_of(w, 4, seed=i) for i, w in enumerate(wrappers))
    full, weighted = (
        method_of(*wrappers)(
            as_batch(student, teacher, as_float(constant_weights(teacher, w)), some_objects())
        )
        for w in (1.0, 0.3)
    )
    for part in WEIGHTS:
        assert weighted[part].item() == pytest.approx(0.3 * full[part].item(), rel=1e-5)


def test_a_student_equal_to_its_teacher_has_no_loss(detector_of):
    wrapper = detector_of()
    features = features_of(wrapper, 4, seed=1)
    losses = method_of(wrapper, wrapper)(
        as_batch(features, features, as_float(random_weights(features)), some_objects())
    )
    assert all(x == 0 for x in losses.values())


def test_refuses_other_classes_unknown_losses_and_parts_of_a_pyramid(detector_of):
    wrapper = detector_of()
    with pytest.raises(ValueError, match="GKD .*student has 3 classes and the teacher 5"):
        method_of(wrapper, detector_of(**{"MODEL.RETINANET.NUM_CLASSES": 5}))
    unknown = DetectorWrapper(wrapper.model)
    with pytest.raises(ValueError, match="GKD follows the student's own loss.*such as PKD"):
        method_of(unknown, wrapper)
    with pytest.raises(ValueError, match="GKD needs the whole pyramid of the student"):
        method_of(detector_of("FasterRCNN"), wrapper)
