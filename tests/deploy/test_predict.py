"""`aid-d2 predict` on images, a folder and a video."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from aid_d2.cli import main
from aid_d2.deploy.detector import TrainedDetector
from aid_d2.deploy.images import write_image
from detectron2.engine import DefaultPredictor


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


class Camera:
    """One that gives two pictures, does not know its rate, and may be opened once."""

    opened = 0

    def __init__(self, source):
        assert source == 0
        Camera.opened += 1
        self.left = 2

    def isOpened(self):
        return Camera.opened == 1

    def get(self, what):
        return -1.0

    def read(self):
        self.left -= 1
        return True, np.zeros((64, 96, 3), np.uint8) if self.left >= 0 else None

    def release(self):
        pass


def test_a_camera(files, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", Camera)
        found = predict(files, tmp_path / "seen", "--input", "0")
    assert len(found["images"]) == 2
    video = cv2.VideoCapture(str(tmp_path / "seen" / "video.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (2, 25)


def test_a_folder_with_a_number_for_a_name_is_no_camera(files, rectangles, tmp_path, monkeypatch):
    (tmp_path / "0001").symlink_to(Path(rectangles[2]).resolve())
    monkeypatch.chdir(tmp_path)
    found = predict(files, tmp_path / "seen", "--input", "0001")
    assert len(found["images"]) == len(list(Path(rectangles[2]).glob("*.png")))


def test_a_video_that_cannot_be_opened_leaves_nothing(files, tmp_path, capsys):
    options = ["--config-file", files[0], "--weights", files[1], "--output", str(tmp_path / "seen")]
    assert main(["predict", *options, "--input", "gone.mp4"]) == 2
    assert "gone.mp4 cannot be opened" in capsys.readouterr().err
    assert not (tmp_path / "seen").exists()


def test_a_video_that_cannot_be_written_is_told(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "opened", 0)
    monkeypatch.setattr(cv2, "VideoWriter_fourcc", lambda *name: 0)
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False, raising=False)
    options = ["--config-file", files[0], "--weights", files[1], "--output", str(tmp_path / "seen")]
    assert main(["predict", *options, "--input", "0"]) == 2
    assert "writes no video of 96 x 64 pixels" in capsys.readouterr().err


def test_a_low_score_shows_more_than_the_config_does(files, rectangles, tmp_path):
    high = ["--opts", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.9"]
    options = ["--input", rectangles[2], "--score", "0.1"]
    wanted = predict(files, tmp_path / "wanted", *options)
    found = predict(files, tmp_path / "found", *options, *high)
    assert len(wanted["annotations"]) == len(found["annotations"]) > 0


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
    assert "not an empty folder" in capsys.readouterr().err


def test_fast_finds_almost_the_same(files, rectangles):
    """Folded norms and bfloat16 change scores by rounding."""
    image = cv2.imread(str(sorted(Path(rectangles[2]).glob("*.png"))[0]))
    exact, fast = TrainedDetector.load(*files), TrainedDetector.load(*files)
    fast.speed_up()
    wanted, found = exact(image).scores[:20], fast(image).scores[:20]
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=0.02)


@pytest.mark.parametrize("masks", [False, True])
def test_detections_of_a_resized_image_are_detectron2s(
    small_cfg, build_seeded, save_teacher, masks
):
    changes = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.MASK_ON": masks,
        "INPUT.MIN_SIZE_TEST": 80,
    }
    cfg = small_cfg("FasterRCNN", changes)
    saved = save_teacher(cfg, build_seeded(cfg, 3))
    config, weights = saved["DISTILL.TEACHER.CONFIG_FILE"], saved["DISTILL.TEACHER.WEIGHTS"]
    image = np.random.default_rng(0).integers(0, 256, (50, 97, 3), np.uint8)
    cfg.MODEL.WEIGHTS = weights
    expected = DefaultPredictor(cfg)(image)["instances"]
    found = TrainedDetector.load(config, weights)(image)
    assert len(found) == len(expected) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
    if masks:
        assert torch.equal(found.pred_masks, expected.pred_masks)
        assert found.pred_masks.shape[1:] == (50, 97)


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OSError, match="a.jpg cannot be written"):
        write_image(tmp_path / "gone" / "a.jpg", np.zeros((4, 4, 3), np.uint8))
