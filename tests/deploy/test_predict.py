"""`aid-d2 predict` on images, a folder and a video."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from aid_d2.cli import main
from aid_d2.deploy.detector import TrainedDetector


@pytest.fixture(scope="module")
def files(small_cfg, build_seeded, save_teacher):
    changes = {"MODEL.RETINANET.SCORE_THRESH_TEST": 0.0, "INPUT.MIN_SIZE_TEST": 64}
    cfg = small_cfg("RetinaNet", changes)
    saved = save_teacher(cfg, build_seeded(cfg, 3))
    return saved["DISTILL.TEACHER.CONFIG_FILE"], saved["DISTILL.TEACHER.WEIGHTS"]


def predict(files, output, *arguments):
    config, weights = files
    options = ["--config-file", config, "--weights", weights, "--output", str(output)]
    assert main(["predict", "--traceback", *options, *arguments]) == 0
    return json.loads((output / "detections.json").read_text())


def test_a_folder(files, rectangles, tmp_path, caplog):
    """A picture of each image, and the detections that Detectron2 makes at test size; what cannot
    be read is named, counted and skipped.
    """
    folder = tmp_path / "photos"
    folder.mkdir()
    sources = sorted(Path(rectangles[2]).glob("*.png"))[:2]
    for source in sources:
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "again").mkdir()
    (folder / "again" / sources[0].name).write_bytes(sources[0].read_bytes())
    found = predict(files, tmp_path / "seen", "--input", str(folder), "--score", "0.1")
    assert "broken.jpg is skipped" in caplog.text
    first, second = (x.stem for x in sources)
    assert [(Path(x["file_name"]).stem, x["picture"]) for x in found["images"]] == [
        *((first, f"{first}.jpg"), (second, f"{second}.jpg"), (first, f"{first}_1.jpg"))
    ]
    assert {x.name for x in (tmp_path / "seen").glob("*.jpg")} == {
        x["picture"] for x in found["images"]
    }
    model = TrainedDetector.load(*files).model
    for image in found["images"]:
        pixels = torch.from_numpy(cv2.imread(image["file_name"]).transpose(2, 0, 1).copy())
        with torch.no_grad():
            (expected,) = model([{"image": pixels, "height": 64, "width": 96}])
        expected = expected["instances"]
        expected = expected[expected.scores >= 0.1]
        ours = [x for x in found["annotations"] if x["image_id"] == image["id"]]
        assert [x["score"] for x in ours] == pytest.approx(expected.scores.tolist())
        assert [x["category_id"] for x in ours] == (expected.pred_classes + 1).tolist()


def test_a_video(files, tmp_path):
    """One video comes out, with as many frames; with another detector, twice as wide."""
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for shade in range(5):
        writer.write(np.full((64, 96, 3), 40 * shade, np.uint8))
    writer.release()
    found = predict(files, tmp_path / "seen", "--input", str(path), "--compare", ":".join(files))
    assert len(found["images"]) == 5
    video = cv2.VideoCapture(str(tmp_path / "seen" / "video.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert video.get(cv2.CAP_PROP_FRAME_WIDTH) >= 2 * 96


@pytest.mark.parametrize("what", ["nowhere.jpg", "empty", "none*.png"])
def test_no_image_is_an_error(files, tmp_path, capsys, what):
    (tmp_path / "empty").mkdir()
    config, weights = files
    options = ["--config-file", config, "--weights", weights, "--output", str(tmp_path / "seen")]
    assert main(["predict", *options, "--input", str(tmp_path / what)]) == 2
    assert what in capsys.readouterr().err


def test_pictures_of_before_are_kept(files, tmp_path, capsys):
    (tmp_path / "old.jpg").touch()
    options = ["--config-file", files[0], "--weights", files[1], "--output", str(tmp_path)]
    assert main(["predict", *options, "--input", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_fast_finds_almost_the_same(files, rectangles):
    """Folded norms and bfloat16 change scores by rounding."""
    image = cv2.imread(str(sorted(Path(rectangles[2]).glob("*.png"))[0]))
    exact, fast = TrainedDetector.load(*files), TrainedDetector.load(*files)
    fast.speed_up()
    wanted, found = exact(image).scores[:20], fast(image).scores[:20]
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=0.02)
