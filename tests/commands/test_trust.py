"""`aid-d2 trust`: the page and the table of a small teacher on coloured rectangles."""

import csv
import json
import math
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest
import torch

from aid_d2.cli import main
from aid_d2.commands import trust as tool
from aid_d2.data import register_coco_json
from aid_d2.modeling.teacher import Teacher
from aid_d2.visualization import labeled_input, object_weights
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances


@pytest.fixture(scope="module")
def teacher(small_cfg, build_seeded, save_teacher, rectangles):
    cfg = small_cfg(
        "FasterRCNN",
        {
            "DATASETS.TRAIN": ("trust_rectangles",),
            "DATASETS.COCO_JSON": [["trust_rectangles", *rectangles[1:]]],
            "INPUT.MIN_SIZE_TEST": 96,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        },
    )
    model = build_seeded(cfg, seed=3)
    register_coco_json(cfg.DATASETS.COCO_JSON)
    return cfg, model, save_teacher(cfg, model)


def run(files, output, *more):
    arguments = [
        *("--config-file", files["DISTILL.TEACHER.CONFIG_FILE"]),
        *("--weights", files["DISTILL.TEACHER.WEIGHTS"]),
        *("--dataset", "trust_rectangles", "--output", str(output), *more),
    ]
    main(["trust", "--traceback", *arguments])
    return list(csv.DictReader((output / "trust.csv").open()))


def test_all_objects_are_ranked_by_aids_weight(teacher, monkeypatch, tmp_path):
    cfg, model, files = teacher
    rows = run(files, tmp_path, "--score", "0.2", "--pictures", "5", "--alpha", "0.5")
    trust = [float(x["trust"]) for x in rows]
    assert trust == sorted(trust)
    objects = [x for x in rows if x["kind"] == "object"]
    expected = []
    for record in DatasetCatalog.get("trust_rectangles"):
        example = labeled_input(cfg, record)
        (weights,) = object_weights(Teacher(model, "BGR"), [example], "BGR", 0.5)
        for annotation, weight in zip(record["annotations"], weights.tolist()):
            x, y, w, h = annotation["bbox"]
            box = (x, y, min(x + w, 96), min(y + h, 64))
            expected.append((record["file_name"], *map(round, box), round(weight, 4)))
    found = [
        (x["file_name"], *(round(float(x[k])) for k in ("x1", "y1", "x2", "y2")))
        + (round(float(x["trust"]), 4),)
        for x in objects
    ]
    assert sorted(found) == sorted(expected)
    alarms = [x for x in rows if x["kind"] == "false alarm"]
    # With a score s the trust is (1 - s)^alpha.
    assert alarms and all(float(x["trust"]) <= math.sqrt(0.8) for x in alarms)

    coco = json.loads((tmp_path / "trust.json").read_text())
    assert len(coco["annotations"]) == len(rows)
    first = coco["annotations"][0]
    assert first["score"] == pytest.approx(trust[0]) and first["kind"] == rows[0]["kind"]
    names = {x["id"]: x["file_name"] for x in coco["images"]}
    assert names[first["image_id"]] == rows[0]["file_name"]


@pytest.fixture(scope="module")
def page(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    run(teacher[2], folder, "--score", "0.2", "--pictures", "5")
    return folder


@pytest.mark.parametrize("width", [1400, 700])
@pytest.mark.parametrize("kind, shown", [("", 10), ("object", 5), ("false alarm", 5)])
def test_the_page_in_a_browser(page, tmp_path, width, kind, shown):
    """Filters are in the address, so that a view can be sent to a colleague."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    result = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--disable-background-networking", "--enable-logging=stderr", "--log-level=0"),
            *(f"--user-data-dir={tmp_path}", f"--window-size={width},900", "--dump-dom"),
            f"{(page / 'index.html').as_uri()}#{urllib.parse.urlencode({'kind': kind})}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not console
    assert result.stdout.count("<figure>") == shown
    assert "<figcaption><b>" in result.stdout
    pictures = re.findall(r'href="(pictures/\d+.jpg)"', result.stdout)
    assert len(pictures) == shown and all((page / x).stat().st_size for x in pictures)


def test_a_broken_image_is_skipped_and_counted(teacher, rectangles, tmp_path, capsys):
    images = shutil.copytree(rectangles[2], tmp_path / "images")
    broken = sorted(images.glob("*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:200])
    register_coco_json([["trust_broken", rectangles[1], str(images)]])
    rows = run(teacher[2], tmp_path / "page", "--dataset", "trust_broken")
    assert rows and not any(x["file_name"] == str(broken) for x in rows)
    assert "1 images skipped" in capsys.readouterr().out


def test_false_alarms_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 30]])
    detections = Instances((50, 50), pred_boxes=Boxes(boxes))
    detections.scores = torch.tensor([0.9, 0.9, 0.9, 0.1])
    objects = torch.tensor([[0.0, 0, 10, 19], [40, 40, 50, 50]])
    none = torch.zeros(0, 4)
    expected = [False, False, True, False]
    assert tool.false_alarms(detections, objects, none, 0.3, 0.5).tolist() == expected
    expected = [True, True, True, False]
    assert tool.false_alarms(detections, objects, none, 0.3, 0.6).tolist() == expected
    assert tool.false_alarms(detections, none, none, 0.3, 0.5).tolist() == expected
    # Half of the third one lies in a region to be ignored, most of which is elsewhere.
    region = torch.tensor([[25.0, 0, 50, 50]])
    expected = [True, True, False, False]
    assert tool.false_alarms(detections, none, region, 0.3, 0.5).tolist() == expected
    expected = [True, True, True, False]
    assert tool.false_alarms(detections, none, region, 0.3, 0.6).tolist() == expected


def test_wrong_labels_are_counted(teacher, rectangles, monkeypatch, tmp_path, capsys):
    """Against the labels of another file: here with three boxes moved and one class changed."""
    truth = json.loads(Path(rectangles[1]).read_text())
    for label in truth["annotations"][:3]:
        label["bbox"][0] += 5
    last = truth["annotations"][-1]
    last["category_id"] = last["category_id"] % 3 + 1
    wrong = [*truth["annotations"][:3], last]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    rows = run(teacher[2], tmp_path / "trust", "--truth", str(tmp_path / "truth.json"))
    (least,) = [x for x in rows if x["kind"] == "object"][:1]  # 5% of 24
    errors = [(f"{x['image_id']}.png", x["bbox"][1]) for x in wrong]
    hit = (Path(least["file_name"]).name, round(float(least["y1"]))) in errors
    share = "1 of 1 (100.0%)" if hit else "0 of 1 (0.0%)"
    expected = f"4 of 24 labels are wrong (16.7%), and of the least trusted 5% {share}."
    assert expected in capsys.readouterr().out


def test_correct_labels_of_other_images_are_refused_at_once(
    teacher, rectangles, monkeypatch, tmp_path
):
    truth = json.loads(Path(rectangles[1]).read_text())
    truth["images"].pop()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    monkeypatch.setattr(tool, "look", lambda *args: pytest.fail("images were looked at"))
    with pytest.raises(ValueError, match="--truth has no image"):
        run(teacher[2], tmp_path / "trust", "--truth", str(tmp_path / "truth.json"))


def test_images_of_one_name_are_told_apart_by_their_folders():
    known = {"a/0.png", "b/0.png", "0.png"}
    for name in known:
        assert tool.name_among(known, f"/data/images/{name}") == name
    with pytest.raises(ValueError, match="--truth has no image /data/c/1.png"):
        tool.name_among(known, "/data/c/1.png")


@pytest.mark.parametrize(
    "option, message",
    [("--config-file", "no config file nowhere"), ("--weights", "--weights .* no file 'nowhere'")],
)
def test_a_missing_file_is_named(teacher, tmp_path, option, message):
    with pytest.raises(FileNotFoundError, match=message):
        run(teacher[2], tmp_path / "trust", option, "nowhere")


def test_a_page_of_before_is_kept(teacher, tmp_path):
    (tmp_path / "trust.csv").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        run(teacher[2], tmp_path)


def test_classes_in_another_order_are_refused(teacher, tmp_path):
    named = tmp_path / "named.pth"
    weights = torch.load(teacher[2]["DISTILL.TEACHER.WEIGHTS"])
    torch.save({**weights, "class_names": ["b", "g", "r"]}, named)
    with pytest.raises(ValueError, match="the teacher are b, g, r; .* in another order"):
        run(teacher[2], tmp_path / "trust", "--weights", str(named))


def test_a_data_set_of_other_classes_is_refused(teacher, rectangles, monkeypatch, tmp_path):
    coco = json.loads(Path(rectangles[1]).read_text())
    coco["categories"].append({"id": 4, "name": "x"})
    (tmp_path / "four.json").write_text(json.dumps(coco))
    register_coco_json([["trust_four_classes", str(tmp_path / "four.json"), rectangles[2]]])
    with pytest.raises(ValueError, match="'trust_four_classes' are r, g, b, x. Unknown to it: x"):
        run(teacher[2], tmp_path / "trust", "--dataset", "trust_four_classes")
