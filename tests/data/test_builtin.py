"""The registered names, in a fresh interpreter: paths are fixed when aid_d2 is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from samples import coco_of, kitti_line

SCRIPT = """
import json, sys
from pathlib import Path
import aid_d2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager

root = Path(sys.argv[1])
report = {"read at import": list((root / "tmp").iterdir())}


def truth(name):
    coco = COCOEvaluator(name, output_dir=str(root))._coco_api
    return {"images": len(coco.imgs), "objects": len(coco.getAnnIds(iscrowd=False))}


def error(name):
    try:
        DatasetCatalog.get(name)
    except Exception as e:
        return f"{type(e).__name__}: {e}"


report["evaluator first"] = truth("kitti_val")
report["sets"] = {}
for name in DatasetCatalog.list():
    if name.startswith(("kitti", "coco_traffic_2017_val", "coco_traffic_11class_2017_val")):
        records, meta = DatasetCatalog.get(name), MetadataCatalog.get(name)
        report["sets"][name] = {
            "files": [r["file_name"] for r in records],
            "classes": meta.thing_classes,
            "evaluator": meta.evaluator_type,
            "objects": [a for r in records for a in r["annotations"]],
            "json": PathManager.get_local_path(meta.json_file),
            "kitti": meta.get("kitti_layout", False),
        }
report["no synthetic"] = error("synthetic_road_train")
report["no coco images"] = error("coco_traffic_2017_train")
(root / "coco/train2017").mkdir()
report["no coco json"] = error("coco_traffic_2017_train")
(root / "coco/annotations/instances_train2017.json").write_text("")
report["empty coco json"] = error("coco_traffic_2017_train")
(root / "coco/annotations/instances_train2017.json").write_text(
    '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}'
)
report["wrong coco json"] = error("coco_traffic_2017_train")
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    (root / "tmp").mkdir()
    # What an earlier run left; as Detectron2 names it.
    (root / "kitti_val_coco_format.json").write_text("{}")
    for folder in ("image_2", "label_2"):
        (root / "kitti" / "training" / folder).mkdir(parents=True)
    (root / "kitti" / "ImageSets").mkdir()
    car, van = kitti_line("Car", (10, 20, 30, 45), "0.20", "1"), kitti_line("Van", (50, 5, 90, 25))
    for i in range(3):
        Image.new("RGB", (100, 50)).save(root / f"kitti/training/image_2/00000{i}.png")
        (root / f"kitti/training/label_2/00000{i}.txt").write_text(car + van)
    (root / "kitti/ImageSets/train.txt").write_text("000000\n000001\n")
    (root / "kitti/ImageSets/val.txt").write_text("000002\n")
    for folder in ("annotations", "val2017"):
        (root / "coco" / folder).mkdir(parents=True)
    coco = coco_of([(3, 0), (18, 0)], [(1, 0)])
    for image in coco["images"]:
        image.update(width=20, height=10)
    (root / "coco/annotations/instances_val2017.json").write_text(json.dumps(coco))

    environment = {"DETECTRON2_DATASETS": str(root), "TMPDIR": str(root / "tmp")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_importing_reads_and_writes_nothing(report):
    assert not report["read at import"]


def test_evaluator_sees_present_labels_without_the_loader(report):
    """And not those that an earlier run left in the folder."""
    assert report["evaluator first"] == {"images": 1, "objects": 1}


def test_kitti_by_name(report):
    sets = report["sets"]
    names = {f"kitti{v}_{s}" for v in ("", "_8class") for s in ("train", "val", "trainval")}
    assert names <= sets.keys()
    assert [len(sets[f"kitti_{s}"]["files"]) for s in ("train", "val", "trainval")] == [2, 1, 3]
    val = sets["kitti_val"]
    assert val["files"][0].endswith("kitti/training/image_2/000002.png")
    assert val["classes"] == ["Car", "Pedestrian", "Cyclist"] and val["kitti"]
    car = next(a for a in val["objects"] if not a["iscrowd"])
    assert (car["category_id"], car["kitti_type"]) == (0, "Car")
    assert (car["truncated"], car["occluded"]) == (0.2, 1)
    assert len(sets["kitti_8class_val"]["classes"]) == 8
    assert all(a["category_id"] in (0, 1) for a in sets["kitti_8class_val"]["objects"])


def test_coco_traffic_by_name(report):
    thirteen = report["sets"]["coco_traffic_2017_val"]
    assert thirteen["files"][0].endswith("coco/val2017/1.jpg") and len(thirteen["files"]) == 1
    # car and dog, contiguous in COCO's order
    assert [a["category_id"] for a in thirteen["objects"]] == [2, 12]
    assert thirteen["classes"][2] == "car" and thirteen["classes"][12] == "dog"
    eleven = report["sets"]["coco_traffic_11class_2017_val"]
    assert [a["category_id"] for a in eleven["objects"]] == [2] and len(eleven["classes"]) == 11


def test_every_set_has_its_own_file_while_the_process_lives(report, tmp_path):
    files = [s["json"] for s in report["sets"].values()]
    assert len(set(files)) == len(files)
    assert not any(Path(file).exists() for file in files)


@pytest.mark.parametrize(
    "case, parts",
    [
        ("no synthetic", ("FileNotFoundError", "synthetic_road", "DETECTRON2_DATASETS")),
        ("no coco images", ("FileNotFoundError", "train2017", "DETECTRON2_DATASETS")),
        ("no coco json", ("FileNotFoundError", "instances_train2017.json", "datasets/README.md")),
        ("empty coco json", ("ValueError", "instances_train2017.json is not a json file")),
        ("wrong coco json", ("ValueError", "instances_train2017.json: no 'images'")),
    ],
)
def test_missing_data_is_explained(report, case, parts):
    assert all(part in report[case] for part in parts), report[case]
