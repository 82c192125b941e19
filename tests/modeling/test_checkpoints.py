"""Checkpoints of a distilled student, and the teacher's own."""

import pickle

import numpy as np
import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer

FAMILIES = ("RetinaNet", "FasterRCNN")
METHODS = ("AttentionGuided", "NonLocal")


@pytest.fixture
def plain_of(small_cfg, build_seeded):
    return lambda detector, seed=0: build_seeded(small_cfg(detector), seed)


@pytest.fixture
def distilled_of(distilled_cfg, build_seeded):
    return lambda detector, seed=0, changes=None: build_seeded(
        distilled_cfg(detector, changes), seed
    )


def detections(model, batch):
    detector = getattr(model, "student", model)
    if hasattr(detector, "roi_heads"):
        detector.roi_heads.box_predictor.test_score_thresh = 0.0
    else:
        detector.test_score_thresh = 0.0
    with torch.no_grad():
        results = [x["instances"] for x in model.eval()(batch)]
    assert all(len(x) for x in results)
    return [torch.cat([x.pred_boxes.tensor, x.scores[:, None]], dim=1) for x in results]


def assert_equal(a, b):
    assert set(a) == set(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


def student_keys(model):
    return {k for k in model.state_dict() if not k.startswith("distiller.")}


@pytest.mark.parametrize("detector", FAMILIES)
def test_keys_are_the_students_and_the_distillers(plain_of, distilled_of, detector):
    plain, model = plain_of(detector), distilled_of(detector)
    assert student_keys(model) == set(plain.state_dict())
    prefixes = {".".join(k.split(".")[:2]) for k in model.state_dict() if "distiller." in k}
    assert prefixes == {f"distiller.{name}" for name in (*METHODS, "aid_gap")}
    expected = sum(x.numel() for x in plain.state_dict().values())
    expected += sum(x.numel() for x in model.distiller.state_dict().values())
    assert sum(x.numel() for x in model.state_dict().values()) == expected


@pytest.mark.parametrize("detector", FAMILIES)
def test_a_file_loads_in_the_plain_student(plain_of, distilled_of, make_batch, tmp_path, detector):
    model, plain = distilled_of(detector, 1), plain_of(detector, 2)
    DetectionCheckpointer(model, str(tmp_path)).save("model_0000009", iteration=9)
    rest = DetectionCheckpointer(plain).load(str(tmp_path / "model_0000009.pth"))
    assert rest == {"iteration": 9}
    assert_equal(plain.state_dict(), {k: model.state_dict()[k] for k in student_keys(model)})
    for a, b in zip(detections(plain, make_batch()), detections(model, make_batch())):
        assert torch.equal(a, b)


@pytest.mark.parametrize("detector", FAMILIES)
def test_a_plain_students_file_loads_and_leaves_the_adapters(
    plain_of, distilled_of, tmp_path, detector
):
    plain, model = plain_of(detector, 1), distilled_of(detector, 2)
    adapters = {k: v.clone() for k, v in model.distiller.state_dict().items()}
    DetectionCheckpointer(plain, str(tmp_path)).save("plain")
    DetectionCheckpointer(model).load(str(tmp_path / "plain.pth"))
    assert_equal(plain.state_dict(), {k: model.state_dict()[k] for k in student_keys(model)})
    assert_equal(adapters, model.distiller.state_dict())


@pytest.mark.parametrize("detector", FAMILIES)
def test_weights_of_other_shapes_are_left_out_as_in_the_plain_student(
    small_cfg, build_seeded, plain_of, distilled_of, tmp_path, caplog, detector
):
    """Fine-tuning from a detector of more classes."""
    head = "RETINANET" if detector == "RetinaNet" else "ROI_HEADS"
    source = build_seeded(small_cfg(detector, {f"MODEL.{head}.NUM_CLASSES": 7}), 3)
    DetectionCheckpointer(source, str(tmp_path)).save("seven")
    loaded, told = [], []
    for target in (plain_of(detector, 4), distilled_of(detector, 4)):
        caplog.clear()
        DetectionCheckpointer(target).load(str(tmp_path / "seven.pth"))
        state = target.state_dict()
        loaded.append({k: x for k, x in state.items() if not k.startswith("distiller.")})
        told.append({x for x in caplog.messages if x.startswith("Skip loading parameter")})
    assert_equal(*loaded)
    fits = [k for k, x in source.state_dict().items() if x.shape == loaded[1][k].shape]
    assert 0 < len(fits) < len(loaded[1])
    assert all(torch.equal(loaded[1][k], source.state_dict()[k]) for k in fits)
    assert told[0] == told[1] and len(told[1]) == len(loaded[1]) - len(fits)


@pytest.mark.parametrize("detector", FAMILIES)
def test_round_trip_restores_the_adapters(distilled_of, tmp_path, detector):
    source, target = distilled_of(detector, 1), distilled_of(detector, 2)
    for p in source.distiller.parameters():
        p.data.add_(torch.randn_like(p))
    DetectionCheckpointer(source, str(tmp_path)).save("model")
    DetectionCheckpointer(target).load(str(tmp_path / "model.pth"))
    assert_equal(source.state_dict(), target.state_dict())
    assert_equal(source.distiller.state_dict(), target.distiller.state_dict())


def test_a_strict_load_fits_exactly(distilled_of):
    source, target = distilled_of("RetinaNet", 1), distilled_of("RetinaNet", 2)
    result = target.load_state_dict(source.state_dict(), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert_equal(source.state_dict(), target.state_dict())
    state = source.state_dict()
    del state["head.cls_score.weight"]
    with pytest.raises(RuntimeError, match="head.cls_score.weight"):
        target.load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match="head.unheard_of"):
        target.load_state_dict({**source.state_dict(), "head.unheard_of": torch.zeros(1)})


def test_a_statistic_that_a_file_lacks_is_reported(plain_of, distilled_of):
    """Modules fill in what files of an earlier version of theirs did not have."""
    name = "backbone.bottom_up.res2.0.conv1.norm.running_var"
    target = distilled_of("RetinaNet")
    for source in (plain_of("RetinaNet"), distilled_of("RetinaNet")):
        state = source.state_dict()
        del state[name]
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"Missing key.*student.{name}"):
                target.load_state_dict(state)
            # Of each module one entry for the plain student and one for this.
            assert len(state._metadata) <= 2 * len(list(target.modules()))


def test_loading_does_not_change_the_dict_it_is_given(distilled_of):
    model = distilled_of("RetinaNet")
    state = dict(model.state_dict())
    keys = list(state)
    model.load_state_dict(state)
    assert list(state) == keys


def test_inside_another_module_the_keys_follow_its_prefix(plain_of, distilled_of):
    """As DistributedDataParallel has it."""
    source = torch.nn.ModuleDict({"module": distilled_of("RetinaNet", 1)})
    target = torch.nn.ModuleDict({"module": distilled_of("RetinaNet", 2)})
    assert {f"module.{k}" for k in plain_of("RetinaNet").state_dict()} == {
        k for k in source.state_dict() if not k.startswith("module.distiller.")
    }
    target.load_state_dict(source.state_dict(), strict=True)
    assert_equal(source.state_dict(), target.state_dict())


def test_switched_off_a_distilled_file_loads_without_its_adapters(distilled_of, tmp_path):
    source = distilled_of("RetinaNet", 1)
    target = distilled_of("RetinaNet", 2, {"DISTILL.ENABLED": False})
    DetectionCheckpointer(source, str(tmp_path)).save("model")
    DetectionCheckpointer(target).load(str(tmp_path / "model.pth"))
    assert_equal(target.state_dict(), {k: source.state_dict()[k] for k in student_keys(source)})


# --- ImageNet files


def imagenet_file(model, folder, seed=0):
    """Random weights in the naming of Detectron2's ImageNet files: the bare keys of a ResNet."""
    generator = np.random.default_rng(seed)
    prefix = "backbone.bottom_up."
    weights = {
        key[len(prefix) :]: generator.normal(size=value.shape).astype(np.float32)
        for key, value in model.state_dict().items()
        if key.startswith(prefix) and value.dim()
    }
    weights["fc1000.weight"] = np.zeros((1000, 512), np.float32)
    path = folder / "R-18.pkl"
    content = {"model": dict(weights), "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    del weights["fc1000.weight"]
    return str(path), {prefix + key: torch.as_tensor(value) for key, value in weights.items()}


@pytest.mark.parametrize("detector", FAMILIES)
def test_an_imagenet_file_loads_in_the_student(plain_of, distilled_of, tmp_path, detector):
    path, weights = imagenet_file(plain_of(detector), tmp_path)
    model = distilled_of(detector, 1)
    before = {k: v.clone() for k, v in model.state_dict().items() if k not in weights}
    teacher = {k: v.clone() for k, v in model.teacher.model.state_dict().items()}
    DetectionCheckpointer(model).load(path)
    after = model.state_dict()
    assert len(weights) > 50
    assert_equal(weights, {k: after[k] for k in weights})
    assert_equal(before, {k: after[k] for k in before})
    assert_equal(teacher, model.teacher.model.state_dict())


# --- the teacher's file


@pytest.fixture
def build_with_teacher(small_cfg, build_seeded, distilled_cfg, save_teacher):
    """Build a DistilledDetector whose teacher's file was changed."""

    def build(change=lambda state: None, detector="RetinaNet"):
        cfg = small_cfg(detector)
        files = save_teacher(cfg, build_seeded(cfg, 100))
        path = files["DISTILL.TEACHER.WEIGHTS"]
        state = torch.load(path)["model"]
        change(state)
        torch.save({"model": state, "iteration": 5}, path)
        return build_seeded(distilled_cfg(detector, files), 0), state

    return build


def drop(key):
    return lambda state: state.pop(key)


def put(**entries):
    return lambda state: state.update({k.replace("__", "."): v for k, v in entries.items()})


@pytest.mark.parametrize("detector", FAMILIES)
def test_teacher_is_what_its_file_says(build_with_teacher, detector):
    model, state = build_with_teacher(detector=detector)
    assert_equal(dict(state), model.teacher.model.state_dict())


@pytest.mark.parametrize(
    "change,message",
    [
        (drop("head.cls_score.weight"), "missing: .*head.cls_score.weight"),
        (drop("backbone.bottom_up.stem.conv1.norm.running_var"), "missing: .*running_var"),
        (put(head__mask__weight=torch.zeros(2)), "left over: head.mask.weight"),
        (
            put(head__cls_score__bias=torch.zeros(7)),
            r"other shape: head.cls_score.bias \(file \(7,\), model \(9,\)\)",
        ),
    ],
    ids=["missing parameter", "missing statistics", "left over", "other shape"],
)
def test_a_teachers_file_that_does_not_fit_is_refused(build_with_teacher, change, message):
    expected = f"weights .*model.pth .*DISTILL.TEACHER.WEIGHTS(.|\n)*{message}"
    with pytest.raises(ValueError, match=expected):
        build_with_teacher(change)


def test_a_file_of_another_detector_is_refused(teachers, distilled_cfg, build_seeded):
    mixed = {"DISTILL.TEACHER.WEIGHTS": teachers["FasterRCNN"]["DISTILL.TEACHER.WEIGHTS"]}
    with pytest.raises(ValueError, match="missing: (.|\n)*left over: proposal_generator"):
        build_seeded(distilled_cfg("RetinaNet", mixed), 0)


def test_a_teacher_of_an_older_detectron2_loads(build_with_teacher):
    """It once saved what it now makes from the config."""

    def add(state):
        state.update({"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)})
        for level in range(5):
            state[f"anchor_generator.cell_anchors.{level}"] = torch.zeros(1, 4)

    model, state = build_with_teacher(add)
    own = model.teacher.model.state_dict()
    assert_equal({k: state[k] for k in own}, own)


def test_a_distilled_student_can_be_a_teacher(
    distilled_cfg, build_seeded, save_teacher, make_batch
):
    """Its own teacher need not be there any more."""
    cfg = distilled_cfg("RetinaNet")
    student = build_seeded(cfg, 3)
    files = save_teacher(cfg, student)
    config = files["DISTILL.TEACHER.CONFIG_FILE"]
    with open(config) as f:
        text = f.read().replace(cfg.DISTILL.TEACHER.WEIGHTS, "gone.pth")
    with open(config, "w") as f:
        f.write(text)
    model = build_seeded(distilled_cfg("RetinaNet", files), 0)
    assert_equal(student.student.state_dict(), model.teacher.model.state_dict())


@pytest.mark.parametrize("key", ["CONFIG_FILE", "WEIGHTS"])
@pytest.mark.parametrize("value,error", [("", ValueError), ("nowhere", FileNotFoundError)])
def test_a_missing_teacher_is_named_with_a_remedy(distilled_cfg, build_seeded, key, value, error):
    cfg = distilled_cfg("RetinaNet", {f"DISTILL.TEACHER.{key}": value})
    with pytest.raises(error, match=f"DISTILL.TEACHER.{key}(.|\n)*DISTILL.ENABLED False"):
        build_seeded(cfg, 0)
