"""KITTIEvaluator: from registered data to named results."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import aid_d2  # noqa: F401
from aid_d2.data.kitti import KITTI_CLASSES, kitti_to_coco
from aid_d2.data.paths import datasets_root
from aid_d2.evaluation import Detections, KITTIEvaluator, ground_truth_of
from aid_d2.evaluation.evaluator import evaluate_frames
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

CLASSES = list(KITTI_CLASSES)
LABELS = {
    "000003": [
        ("Car", 0.0, 0, (10, 10, 110, 60)),
        ("Van", 0.0, 0, (200, 10, 300, 60)),
        ("DontCare", -1, -1, (400, 10, 600, 60)),
        ("DontCare", -1, -1, (400, 10, 600, 60)),
        ("Pedestrian", 0.2, 1, (320, 10, 350, 80)),
    ],
    "000007": [],
    "000011": [("Car", 0.4, 2, (10, 10, 110, 60)), ("Cyclist", 0.0, 0, (200, 10, 240, 60))],
}


@pytest.fixture
def coco(tmp_path):
    """What aid_d2 makes of these frames."""
    for folder in ("image_2", "label_2"):
        (tmp_path / "training" / folder).mkdir(parents=True)
    for frame, labels in LABELS.items():
        Image.new("RGB", (640, 100)).save(tmp_path / f"training/image_2/{frame}.png")
        text = "".join(
            f"{kind} {cut} {hidden} 0 {' '.join(map(str, box))} 1 1 1 0 0 9 0\n"
            for kind, cut, hidden, box in labels
        )
        (tmp_path / f"training/label_2/{frame}.txt").write_text(text)
    return kitti_to_coco(tmp_path, list(LABELS), CLASSES)


@pytest.fixture
def dataset(coco, tmp_path, request):
    """The name under which the frames are registered."""
    name = f"kitti_evaluator_{request.node.name}"
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(coco))
    MetadataCatalog.get(name).set(
        json_file=str(file),
        thing_classes=CLASSES,
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2},
    )
    yield name
    MetadataCatalog.remove(name)


def output(*objects):
    """What a detector returns: objects are (class index, box, score)."""
    instances = Instances((100, 640))
    instances.pred_classes = torch.tensor([x[0] for x in objects], dtype=torch.int64)
    instances.pred_boxes = Boxes(torch.tensor([x[1] for x in objects]).reshape(-1, 4).float())
    instances.scores = torch.tensor([x[2] for x in objects]).float()
    return {"instances": instances}


PERFECT = {
    3: output((0, (10, 10, 110, 60), 0.9), (1, (320, 10, 350, 80), 0.8)),
    7: output(),
    11: output((0, (10, 10, 110, 60), 0.7), (2, (200, 10, 240, 60), 0.9)),
}


def evaluate(evaluator, outputs):
    evaluator.reset()
    for image, found in outputs.items():
        evaluator.process([{"image_id": image}], [found])
    return evaluator.evaluate()


def test_labels_are_read_back_once_each(coco):
    truths = ground_truth_of(coco)
    assert list(truths) == [3, 7, 11]
    for (_, labels), truth in zip(LABELS.items(), truths.values()):
        assert truth.types.tolist() == [x[0] for x in labels]
        assert truth.truncated.tolist() == [x[1] for x in labels]
        assert truth.occluded.tolist() == [x[2] for x in labels]
        np.testing.assert_array_equal(truth.boxes, np.reshape([x[3] for x in labels], (-1, 4)))


def test_other_data_sets_are_refused(coco):
    del coco["annotations"][1]["kitti_type"]
    with pytest.raises(ValueError, match="Annotation 2 has no 'kitti_type'"):
        ground_truth_of(coco)


def test_perfect_detections(dataset):
    results = evaluate(KITTIEvaluator(dataset), PERFECT)["kitti"]
    for kind in ("R40", "R11"):
        assert results[f"{kind}_easy-Car"] == results[f"{kind}_moderate-Car"] == 100
        assert results[f"{kind}_moderate-Pedestrian"] == results[f"{kind}_easy-Cyclist"] == 100
        # This pedestrian is partly occluded.
        assert math.isnan(results[f"{kind}_easy-Pedestrian"])
    means = {key: value for key, value in results.items() if "-" not in key}
    assert means == {"R40_easy": 100, "R40_moderate": 100, "R40_hard": 100, "VOC_AP50": 100}


def test_only_the_missing_cyclist_lowers_the_means(dataset):
    outputs = {**PERFECT, 11: output((0, (10, 10, 110, 60), 0.7))}
    results = evaluate(KITTIEvaluator(dataset), outputs)["kitti"]
    assert results["R40_hard-Cyclist"] == results["VOC_AP50-Cyclist"] == 0
    assert results["R40_easy"] == 50  # of car and cyclist: there is no easy pedestrian
    assert results["R40_hard"] == results["VOC_AP50"] == pytest.approx(200 / 3)


def test_frames_without_detections_count(dataset):
    results = evaluate(KITTIEvaluator(dataset), {3: PERFECT[3]})["kitti"]
    assert results["R40_hard-Car"] == 50
    assert evaluate(KITTIEvaluator(dataset), {})["kitti"]["VOC_AP50"] == 0


def test_beside_cocos_evaluator(dataset, tmp_path):
    both = DatasetEvaluators([COCOEvaluator(dataset, ("bbox",)), KITTIEvaluator(dataset)])
    results = evaluate(both, PERFECT)
    assert results["bbox"]["AP50"] == pytest.approx(100)
    assert results["kitti"]["VOC_AP50"] == 100


def test_detections_of_all_processes_are_put_together(dataset, monkeypatch):
    evaluator = KITTIEvaluator(dataset)
    expected = str(evaluate(evaluator, PERFECT))
    other = KITTIEvaluator(dataset, distributed=False)
    evaluate(other, {image: PERFECT[image] for image in (3, 7)})
    monkeypatch.setattr(comm, "gather", lambda data, dst: [data, other._found])
    assert str(evaluate(evaluator, {11: PERFECT[11]})) == expected
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluate(evaluator, {11: PERFECT[11]}) == {}


@pytest.mark.parametrize("name, num_cells", [("kitti_trainval", 9), ("kitti_8class_trainval", 9)])
def test_labels_of_genuine_frames_score_100(name, num_cells):
    if not (datasets_root() / "kitti" / "training").is_dir():
        pytest.skip("needs KITTI's training frames under $DETECTRON2_DATASETS/kitti")
    metadata = MetadataCatalog.get(name)
    assert name in DatasetCatalog
    file = PathManager.get_local_path(metadata.json_file)
    with open(file) as opened:
        truths = list(ground_truth_of(json.load(opened)).values())
    rng = np.random.default_rng(0)
    detections = []
    for truth in truths:
        keep = np.isin(truth.types, metadata.thing_classes)
        scores = rng.random(int(keep.sum()))
        detections.append(Detections(truth.boxes[keep], truth.types[keep], scores))
    results = evaluate_frames(truths, detections, list(metadata.thing_classes))
    cells = {key: value for key, value in results.items() if key.startswith("R40") and "-" in key}
    assert len(cells) == num_cells
    assert all(value == 100 for value in results.values() if not math.isnan(value))
