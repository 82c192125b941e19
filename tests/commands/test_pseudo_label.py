"""`aid-d2 pseudo-label` and benchmarks/split_coco.py on images on disk."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import split_coco
import torch
from PIL import ExifTags, Image

from aid_d2.cli import main
from aid_d2.commands.pseudo_label import teacher_classes
from aid_d2.data import register_coco_json
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.modeling import META_ARCH_REGISTRY

OF_DATA_SET = ("--dataset", "pseudo_rectangles")


@pytest.fixture(scope="module")
def teacher(small_cfg, build_seeded, save_teacher, rectangles):
    """Its config, its files, and the detections that it makes by Detectron2's own inference."""
    changes = {
        "DATASETS.TRAIN": ("pseudo_rectangles",),
        "DATASETS.COCO_JSON": [["pseudo_rectangles", *rectangles[1:]]],
        "DATALOADER.NUM_WORKERS": 0,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
        "INPUT.MIN_SIZE_TEST": 64,
    }
    cfg = small_cfg("RetinaNet", changes)
    model = build_seeded(cfg, seed=3)
    files = save_teacher(cfg, model)
    register_coco_json(cfg.DATASETS.COCO_JSON)
    detected, mapper = {}, DatasetMapper(cfg, is_train=False)
    with torch.no_grad():
        for record in DatasetCatalog.get("pseudo_rectangles"):
            instances = model.eval()([mapper(record)])[0]["instances"]
            detected[Path(record["file_name"]).name] = instances
    return cfg, files, detected


@pytest.fixture
def run(teacher, rectangles):
    """`run(output, threshold, *source)`: the tool as a command, its result read back."""

    def call(output, threshold, *source):
        _, files, _ = teacher
        arguments = [
            *("--config-file", files["DISTILL.TEACHER.CONFIG_FILE"]),
            *("--weights", files["DISTILL.TEACHER.WEIGHTS"]),
            *("--output", str(output), "--threshold", str(threshold)),
            *(source or ("--images", rectangles[2])),
        ]
        main(["pseudo-label", "--traceback", *arguments])
        return json.loads(output.read_text())

    return call


@pytest.fixture
def threshold(teacher):
    """Between the best scores of the images: half of them keep a box."""
    best = sorted(float(x.scores.max()) for x in teacher[2].values())
    assert best[3] < best[4]
    return (best[3] + best[4]) / 2


def check(coco, detected, threshold):
    """The file holds the detections that score enough, and the images that have one."""
    kept = {name: x[x.scores >= threshold] for name, x in detected.items()}
    kept = {name: x for name, x in kept.items() if len(x)}
    assert {x["file_name"] for x in coco["images"]} == set(kept)
    assert [c["name"] for c in coco["categories"]] == ["r", "g", "b"]
    for image in coco["images"]:
        expected = kept[image["file_name"]]
        found = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in found])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=1e-5, atol=1e-3)
        assert [a["category_id"] - 1 for a in found] == expected.pred_classes.tolist()
        assert [a["score"] for a in found] == pytest.approx(expected.scores.tolist(), rel=1e-5)


@pytest.mark.parametrize("source", ["folder", "data set"])
def test_labels_are_the_detections_above_the_threshold(run, teacher, threshold, tmp_path, source):
    arguments = () if source == "folder" else OF_DATA_SET
    coco = run(tmp_path / "new" / "labels.json", threshold, *arguments)
    assert 0 < len(coco["images"]) < 8
    check(coco, teacher[2], threshold)
    assert [x.name for x in (tmp_path / "new").iterdir()] == ["labels.json"]


def test_the_result_is_a_data_set(run, threshold, tmp_path, rectangles):
    coco = run(tmp_path / "labels.json", threshold)
    register_coco_json([["pseudo_result", str(tmp_path / "labels.json"), rectangles[2]]])
    records = DatasetCatalog.get("pseudo_result")
    assert sum(len(x["annotations"]) for x in records) == len(coco["annotations"])
    assert all(Path(x["file_name"]).is_file() for x in records)


def test_goes_on_where_it_was(run, teacher, threshold, tmp_path, monkeypatch):
    output = tmp_path / "labels.json"
    retinanet = META_ARCH_REGISTRY.get("RetinaNet")
    forward, calls = retinanet.forward, []

    def dies_at_the_fourth(self, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(retinanet, "forward", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(output, threshold)
    partial = tmp_path / "labels.json.partial"
    # Killed in the middle of a line.
    partial.write_text(partial.read_text()[:-5])
    with pytest.raises(ValueError, match="begun with other settings"):
        run(output, threshold / 2)
    # The file has been trained further since.
    weights = Path(teacher[1]["DISTILL.TEACHER.WEIGHTS"])
    before = weights.read_bytes()
    weights.write_bytes(before + b"0")
    with pytest.raises(ValueError, match="begun with other settings"):
        run(output, threshold)
    weights.write_bytes(before)
    config = Path(teacher[1]["DISTILL.TEACHER.CONFIG_FILE"])
    text = config.read_text()
    config.write_text(text.replace("NMS_THRESH_TEST: 0.5", "NMS_THRESH_TEST: 0.4"))
    with pytest.raises(ValueError, match="begun with other settings"):
        run(output, threshold)
    # Neither the place of the training nor the workers change a detection.
    config.write_text(text.replace("OUTPUT_DIR: ", "OUTPUT_DIR: elsewhere"))
    assert not output.exists()
    coco = run(output, threshold)
    # Two of the three finished lines were whole: six images are left.
    assert len(calls) == 4 + 6
    config.write_text(text)
    check(coco, teacher[2], threshold)
    assert not partial.exists()


def test_classes_are_those_of_the_checkpoint(run, teacher, tmp_path):
    """Whatever the data set of its training lists by now."""
    weights = Path(teacher[1]["DISTILL.TEACHER.WEIGHTS"])
    named = tmp_path / "named.pth"
    torch.save({**torch.load(weights), "class_names": ["car", "person", "truck"]}, named)
    coco = run(tmp_path / "labels.json", 0.0, "--weights", str(named), *OF_DATA_SET)
    assert [x["name"] for x in coco["categories"]] == ["car", "person", "truck"]


def test_a_teacher_whose_number_of_classes_is_not_known():
    """A detector of one's own, without a wrapper that tells it."""
    known = SimpleNamespace(class_names=["car", "bus"], wrapper=SimpleNamespace(num_classes=None))
    assert teacher_classes(get_cfg(), known) == ["car", "bus"]
    known.wrapper.num_classes = 3
    with pytest.raises(ValueError, match="has 3 classes, .* names 2"):
        teacher_classes(get_cfg(), known)


def test_a_photograph_turned_by_its_exif_tag(run, rectangles, tmp_path):
    (tmp_path / "photos").mkdir()
    image = Image.open(next(Path(rectangles[2]).glob("*.png")))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "photos" / "turned.jpg", exif=exif)
    coco = run(tmp_path / "labels.json", 0.0, "--images", str(tmp_path / "photos"))
    assert [(x["width"], x["height"]) for x in coco["images"]] == [image.size[::-1]]


def test_images_that_cannot_be_read_are_skipped_and_counted(run, rectangles, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    whole = next(Path(rectangles[2]).glob("*.png")).read_bytes()
    (photos / "a.png").write_bytes(whole)
    (photos / "half.png").write_bytes(whole[: len(whole) // 2])
    (photos / "no.jpg").write_text("no picture")
    coco = run(tmp_path / "labels.json", 0.0, "--images", str(photos))
    assert [x["file_name"] for x in coco["images"]] == ["a.png"]
    assert "in 1 of 3 images, 2 of them skipped" in capsys.readouterr().out


def test_bad_arguments(run, tmp_path):
    output = tmp_path / "labels.json"
    with pytest.raises(ValueError, match="--threshold is 1.5"):
        run(output, 1.5)
    with pytest.raises(FileNotFoundError, match="--images: there is no folder"):
        run(output, 0.5, "--images", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        run(output, 0.5, "--images", str(tmp_path / "empty"))
    output.write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        run(output, 0.5)
    assert output.read_text() == "precious"


def split(tool, monkeypatch, source, share, *outputs):
    monkeypatch.setattr(
        "sys.argv",
        ["split_coco.py", source, "--share", str(share), "--output", *map(str, outputs)],
    )
    tool.main()
    return [json.loads(path.read_text()) for path in outputs]


def test_split(load_tool, monkeypatch, rectangles, tmp_path):
    tool, source = split_coco, rectangles[1]
    whole = json.loads(Path(source).read_text())
    some, rest = split(tool, monkeypatch, source, 0.25, tmp_path / "a.json", tmp_path / "b.json")
    assert (len(some["images"]), len(rest["images"])) == (2, 6)
    for key in ("images", "annotations"):
        union = sorted(some[key] + rest[key], key=lambda x: x["id"])
        assert union == whole[key]
    for part in (some, rest):
        ids = {image["id"] for image in part["images"]}
        assert {a["image_id"] for a in part["annotations"]} == ids
        assert part["categories"] == whole["categories"]
    more, _ = split(tool, monkeypatch, source, 0.5, tmp_path / "c.json", tmp_path / "d.json")
    assert {x["id"] for x in some["images"]} < {x["id"] for x in more["images"]}
    with pytest.raises(FileExistsError, match="a.json exists already"):
        split(tool, monkeypatch, source, 0.25, tmp_path / "a.json", tmp_path / "e.json")
