"""`aid-d2 export`: the file computes what PyTorch does, and runs without it."""

import importlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from aid_d2.cli import main
from aid_d2.deploy import export, runtime
from aid_d2.deploy.detector import TrainedDetector
from aid_d2.deploy.program import ProgramDetector
from aid_d2.deploy.runtime import Detector
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import RetinaNet

onnx = pytest.importorskip("onnx", reason="the extra [export] is not installed")

WITHOUT_TORCH = """
import json, sys
for name in ("torch", "torchvision", "detectron2", "aid_d2"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import cv2, run_onnx
found = run_onnx.Detector(sys.argv[2])(cv2.imread(sys.argv[3]))
print(json.dumps({key: value.tolist() for key, value in found.items()}))
"""


@pytest.fixture(scope="module")
def files_of(small_cfg, build_seeded, save_teacher):
    """`files_of(name)`: config and weights of a detector."""

    @cache
    def save(name):
        changes = {
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
            "INPUT.MIN_SIZE_TEST": 64,
        }
        cfg = small_cfg(name, changes)
        saved = save_teacher(cfg, build_seeded(cfg, 3))
        return saved["DISTILL.TEACHER.CONFIG_FILE"], saved["DISTILL.TEACHER.WEIGHTS"]

    return save


@pytest.fixture(scope="module", params=["RetinaNet", "FasterRCNN"])
def files(request, files_of):
    return files_of(request.param)


@pytest.fixture
def retinanet(files_of):
    return files_of("RetinaNet")


def arguments(files, output, *more):
    return ["export", "--config-file", files[0], "--weights", files[1], "--output", output, *more]


@pytest.fixture(scope="module")
def exported(files, rectangles, tmp_path_factory):
    output = tmp_path_factory.mktemp("export") / "detector.onnx"
    assert main(arguments(files, str(output), "--images", rectangles[2])) == 0
    return output


def test_it_runs_without_torch_and_detects_the_same(files, exported, rectangles):
    image = str(sorted(Path(rectangles[2]).glob("*.png"))[0])
    call = [sys.executable, "-c", WITHOUT_TORCH, str(exported.parent), str(exported), image]
    found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    expected = TrainedDetector.load(*files)(cv2.imread(image))
    assert len(found["scores"]) == len(expected) > 20
    assert np.allclose(found["scores"], expected.scores, atol=1e-4)
    assert np.allclose(found["boxes"], expected.pred_boxes.tensor, atol=1e-2)
    assert found["classes"] == expected.pred_classes.tolist()


def test_an_image_that_is_resized(exported, rectangles):
    """Each pixel as nine of them: the mean of nine is that pixel, and boxes are three times as
    large.
    """
    image = cv2.imread(str(sorted(Path(rectangles[2]).glob("*.png"))[0]))
    detector = Detector(str(exported))
    found, enlarged = detector(image), detector(image.repeat(3, axis=0).repeat(3, axis=1))
    assert len(found["scores"]) > 20
    assert np.allclose(enlarged["scores"], found["scores"], atol=1e-6)
    assert np.allclose(enlarged["boxes"], 3 * found["boxes"], atol=1e-3)
    assert enlarged["classes"].tolist() == found["classes"].tolist()


def test_what_run_onnx_prints(exported, rectangles, tmp_path, monkeypatch, capsys):
    image = str(sorted(Path(rectangles[2]).glob("*.png"))[0])
    (tmp_path / "broken.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((64, 960, 3), np.uint8))
    others = [str(tmp_path / name) for name in ("broken.png", "wide.png")]
    for score, expected in (("0.0", f"{image} class 0 0."), ("1.0", f"{image} nothing of a score")):
        more = [str(exported), *others, image, "--score", score]
        monkeypatch.setattr("sys.argv", ["run_onnx.py", *more])
        with pytest.raises(SystemExit) as ended:
            runtime.main()
        assert ended.value.code == 1  # since one is broken
        output = capsys.readouterr()
        assert expected in output.out and "broken.png cannot be read" in output.err
        assert "wide.png: The image is 64 x 960 when resized" in output.err
    monkeypatch.setattr("sys.argv", ["run_onnx.py", str(exported), image, "--score", "-1"])
    with pytest.raises(SystemExit, match="0"):
        runtime.main()
    assert "nothing of a score below 0.0" in capsys.readouterr().err


def test_a_file_without_nms(files, exported, rectangles, tmp_path):
    """Its runtime suppresses, and the detections are the same."""
    output = tmp_path / "candidates.onnx"
    assert main(arguments(files, str(output), "--images", rectangles[2], "--no-nms")) == 0
    image = cv2.imread(str(sorted(Path(rectangles[2]).glob("*.png"))[0]))
    with_nms, without = Detector(str(exported))(image), Detector(str(output))(image)
    assert len(without["scores"]) == len(with_nms["scores"]) > 20
    assert np.allclose(without["scores"], with_nms["scores"], atol=1e-6)
    assert np.allclose(without["boxes"], with_nms["boxes"], atol=1e-3)


def test_a_program_runs_without_detectron2(files, rectangles, tmp_path):
    output = tmp_path / "detector.pt2"
    assert main(arguments(files, str(output), "--images", rectangles[2])) == 0
    image = str(sorted(Path(rectangles[2]).glob("*.png"))[0])
    code = (
        "import sys\n"
        "for name in ('detectron2', 'aid_d2'): sys.modules[name] = None\n"
        "import cv2, numpy as np, torch, torchvision\n"
        "program = torch.export.load(sys.argv[1]).module()\n"
        "image = torch.from_numpy(np.ascontiguousarray(cv2.imread(sys.argv[2])))\n"
        "with torch.no_grad(): found = program(image, torch.tensor(image.shape[:2]))\n"
        "torch.save(found, sys.argv[3])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(output), image, str(tmp_path / "x")], check=True
    )
    boxes, scores, classes = torch.load(tmp_path / "x")
    expected = TrainedDetector.load(*files).detect(cv2.imread(image))
    found = scores > 0
    assert found.sum() == len(expected) > 20
    torch.testing.assert_close(scores[found], expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes[found], expected.pred_boxes.tensor, atol=1e-2, rtol=0)
    assert torch.equal(classes[found], expected.pred_classes)


def test_openvino_detects_the_same(exported, rectangles):
    pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    openvino_runtime = importlib.import_module("aid_d2.deploy.openvino_runtime")
    image = cv2.imread(str(sorted(Path(rectangles[2]).glob("*.png"))[0]))
    ours = openvino_runtime.OpenVinoDetector(str(exported), 1, precision="f32")(image)
    theirs = Detector(str(exported))(image)
    assert ours["scores"][:20] == pytest.approx(theirs["scores"][:20], abs=1e-4)
    assert ours["boxes"][:20] == pytest.approx(theirs["boxes"][:20], abs=1e-1)


def test_average_precision_of_both(files, rectangles, tmp_path, capsys):
    """As Detectron2's own evaluation finds it; the file's equals it."""
    images = rectangles[2]
    opts = ["--opts", "DATASETS.COCO_JSON", str([rectangles]), "DATASETS.TEST", "('rectangles',)"]
    output = str(tmp_path / "x.onnx")
    named = tmp_path / "named.pth"
    torch.save({**torch.load(files[1]), "class_names": ["r", "g", "b"]}, named)
    files = files[0], str(named)
    assert main(arguments(files, output, "--images", images, "--evaluate", *opts)) == 0
    ours, theirs = (float(x) for x in re.findall(r"AP of .*: ([\d.]+)", capsys.readouterr().out))
    detector = TrainedDetector.load(*files, opts[1:])
    loader = build_detection_test_loader(detector.cfg, "rectangles")
    evaluator = COCOEvaluator("rectangles", tasks=["bbox"])
    expected = inference_on_dataset(detector.model, loader, evaluator)["bbox"]["AP"]
    assert ours == pytest.approx(expected, abs=0.01) and ours == pytest.approx(theirs, abs=0.01)


def test_nothing_detected_is_no_parity(retinanet, rectangles, tmp_path, capsys):
    high = ["MODEL.RETINANET.SCORE_THRESH_TEST", "1", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1"]
    options = ["--images", rectangles[2], "--opts", *high]
    assert main(arguments(retinanet, str(tmp_path / "x.onnx"), *options)) == 2
    assert "finds nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_kept(retinanet, rectangles, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "BOX_TOLERANCE", -1.0)
    assert main(arguments(retinanet, str(tmp_path / "bad.onnx"), "--images", rectangles[2])) == 2
    assert "differs from PyTorch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_inference_than_detectron2s_is_not_kept(
    retinanet, rectangles, tmp_path, monkeypatch, capsys
):
    """Of a subclass, say: the file has that of the base class."""
    inference = RetinaNet.forward_inference

    def more_modest(self, *args):
        return [x[x.scores > 0.3] for x in inference(self, *args)]

    monkeypatch.setattr(RetinaNet, "forward_inference", more_modest)
    assert main(arguments(retinanet, str(tmp_path / "x.onnx"), "--images", rectangles[2])) == 2
    error = capsys.readouterr().err
    assert "differs from PyTorch" in error or "finds nothing" in error
    assert not list(tmp_path.iterdir())


def test_a_larger_canvas(retinanet, rectangles, tmp_path):
    """The file sees an image as Detectron2 does in a batch with one of the canvas's size."""
    output, canvas = tmp_path / "x.onnx", (96, 160)
    sizes = ["--size", *map(str, canvas)]
    assert main(arguments(retinanet, str(output), "--images", rectangles[2], *sizes)) == 0
    image = cv2.imread(str(sorted(Path(rectangles[2]).glob("*.png"))[0]))
    batch = [
        {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())},
        {"image": torch.zeros(3, *canvas)},
    ]
    with torch.no_grad():
        expected = TrainedDetector.load(*retinanet).model(batch)[0]["instances"]
    found = Detector(str(output))(image)
    assert np.allclose(found["scores"], expected.scores, atol=1e-4)
    assert np.allclose(found["boxes"], expected.pred_boxes.tensor, atol=1e-2)


def test_the_canvas_fits_images_that_are_not_compared(retinanet, rectangles, tmp_path):
    """One image in portrait, which a sample of one leaves out."""
    folder, output = tmp_path / "photos", tmp_path / "x.onnx"
    folder.mkdir()
    first = cv2.imread(str(sorted(Path(rectangles[2]).glob("*.png"))[0]))
    cv2.imwrite(str(folder / "a.png"), first)
    cv2.imwrite(str(folder / "b.png"), first.transpose(1, 0, 2))
    assert main(arguments(retinanet, str(output), "--images", str(folder), "--count", "1")) == 0
    detector = Detector(str(output))
    assert detector.metadata["canvas"] == [96, 96]
    detector(first.transpose(1, 0, 2))


def test_a_script_that_was_changed_is_kept(retinanet, rectangles, tmp_path, caplog):
    script = tmp_path / "run_onnx.py"
    script.write_text("mine")
    assert main(arguments(retinanet, str(tmp_path / "x.onnx"), "--images", rectangles[2])) == 0
    assert script.read_text() == "mine" and "is left as it is" in caplog.text


def write_foreign(path):
    """An ONNX file of another program."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [out])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), path)


@pytest.mark.parametrize("content, message", [(b"no graph", "cannot be run"), (None, "not of")])
def test_other_files_are_refused_in_one_line(content, message, tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.onnx"
    if content is None:
        write_foreign(path)
    else:
        path.write_bytes(content)
    monkeypatch.setattr("sys.argv", ["run_onnx.py", str(path), "image.jpg"])
    with pytest.raises(SystemExit, match=message):
        runtime.main()
    with pytest.raises(ValueError, match=message):
        Detector(str(path))


def test_foreign_files_in_openvino_and_pytorch(tmp_path):
    program = torch.export.export(torch.nn.Identity(), (torch.ones(1),))
    torch.export.save(program, tmp_path / "x.pt2")
    with pytest.raises(ValueError, match="x.pt2 is not of `aid-d2 export`"):
        ProgramDetector(str(tmp_path / "x.pt2"))
    pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    openvino_runtime = importlib.import_module("aid_d2.deploy.openvino_runtime")
    write_foreign(tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="x.onnx is not of `aid-d2 export`"):
        openvino_runtime.OpenVinoDetector(str(tmp_path / "x.onnx"))


def test_images_as_they_are(exported):
    """INPUT.MIN_SIZE_TEST 0, Detectron2's word for no resizing."""
    detector = Detector(str(exported))
    detector.metadata["min_size"] = 0
    assert detector.resize(np.zeros((40, 50, 3), np.uint8)).shape == (40, 50, 3)


def test_slim_checkpoint(retinanet, tmp_path):
    """The weights, without optimizer and distillers."""
    full = torch.load(retinanet[1])
    fat = tmp_path / "fat.pth"
    more = {**full["model"], "distiller.PKD.weight": torch.ones(9)}
    torch.save({**full, "model": more, "optimizer": {"x": torch.ones(999)}}, fat)
    output = tmp_path / "slim.pth"
    assert main(arguments((retinanet[0], str(fat)), str(output), "--student-only")) == 0
    slim = torch.load(output)
    assert slim["model"].keys() == full["model"].keys()
    assert all(torch.equal(value, full["model"][key]) for key, value in slim["model"].items())
    assert "optimizer" not in slim


@pytest.mark.parametrize(
    ["more", "message"],
    [
        (["--images", "IMAGES", "--size", "50", "96"], "multiple of 32"),
        (["--images", "IMAGES", "--size", "32", "96"], "choose (64, 96)"),
        (["--images", "nowhere"], "nowhere"),
        (["--images", "IMAGES", "--count", "0"], "--count is 0"),
        ([], "--images is missing"),
    ],
)
def test_bad_input(retinanet, rectangles, tmp_path, capsys, more, message):
    more = [rectangles[2] if x == "IMAGES" else x for x in more]
    assert main(arguments(retinanet, str(tmp_path / "x.onnx"), *more)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
