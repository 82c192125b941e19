"""Detectron2 with and without its extension, on this and on other machines."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aid_d2 import compat
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.layers import ROIAlignRotated, nms_rotated
from detectron2.structures import Boxes, Instances, RotatedBoxes, pairwise_iou_rotated

REPOSITORY = Path(__file__).parents[1]
not_compiled = pytest.mark.skipif(
    not any("detectron2._C" in repair for repair in compat.REPAIRS),
    reason="Detectron2 has its extension here",
)


def run_python(code, *paths):
    """Standard output of code run by a fresh interpreter that looks in `paths` first."""
    script = f"import sys; sys.path[:0] = {[str(p) for p in (*paths, REPOSITORY)]}\n{code}"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def write_package(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# Loads compat.py alone: importing aid_d2 would need a whole Detectron2.
LOAD_COMPAT = f"""
import importlib.util, json
spec = importlib.util.spec_from_file_location("compat", {str(REPOSITORY / "aid_d2/compat.py")!r})
compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
"""


# --- without the extension


@not_compiled
def test_a_missing_operation_says_so_when_it_is_called():
    pool, maps = ROIAlignRotated((2, 2), 1.0, 0), torch.zeros(1, 2, 4, 4)
    with pytest.raises(NotImplementedError, match="roi_align_rotated_forward.*C\\+\\+ extension"):
        pool(maps, torch.tensor([[0.0, 2, 2, 2, 2, 30]]))
    boxes = torch.tensor([[5.0, 5, 4, 4, 30]])
    with pytest.raises(NotImplementedError, match="nms_rotated.*C\\+\\+ extension"):
        nms_rotated(boxes, torch.ones(1), 0.5)
    with pytest.raises(NotImplementedError, match="box_iou_rotated.*C\\+\\+ extension"):
        pairwise_iou_rotated(RotatedBoxes(boxes), RotatedBoxes(boxes))


@not_compiled
def test_the_environment_report_works():
    from detectron2.utils.collect_env import collect_env_info

    assert "detectron2" in collect_env_info()


def test_the_model_zoo_imports_without_pkg_resources():
    code = """
import importlib.util, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pkg_resources":
            raise ModuleNotFoundError(name)
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda n, *a: None if n == "pkg_resources" else find_spec(n, *a)
sys.meta_path.insert(0, Hide())
import aid_d2
from detectron2 import model_zoo
print(model_zoo.model_zoo._ModelZooUrls.S3_PREFIX, "pkg_resources" in sys.modules)
"""
    assert run_python(code).split() == ["https://dl.fbaipublicfiles.com/detectron2/", "False"]


def test_preparing_again_finds_nothing_to_replace():
    before = {name: sys.modules.get(name) for name in ("detectron2._C", "pkg_resources")}
    again = compat.prepare()
    assert not any("running without detectron2._C" in x or "restored" in x for x in again)
    assert {name: sys.modules.get(name) for name in before} == before


# --- other installations


NEWER = {
    "detectron2/__init__.py": "",
    "detectron2/_C.py": "def nms_rotated(): return 'compiled'",
    "detectron2/structures/__init__.py": "",
    "detectron2/structures/masks.py": "import numpy as np\nMASK = np.asarray([1], dtype=bool)\n",
    "detectron2/data/transforms/transform.py": "from PIL import Image\nimage = Image.BILINEAR\n",
    "detectron2/model_zoo/__init__.py": "raise RuntimeError('imported')",
    "detectron2/model_zoo/model_zoo.py": "import importlib.resources\n",
    "detectron2/evaluation/__init__.py": "",
    "detectron2/evaluation/fast_eval_api.py": "COCOeval_opt = 'compiled'",
}


def test_a_compiled_or_newer_detectron2_is_left_alone(tmp_path):
    code = (
        LOAD_COMPAT
        + """
import sys, numpy, torch
from PIL import Image
before = set(vars(numpy)), set(vars(Image)), set(vars(torch.ops))
repairs = compat.prepare()
after = set(vars(numpy)), set(vars(Image)), set(vars(torch.ops))
import detectron2._C, detectron2.evaluation.fast_eval_api as fast
print(json.dumps([repairs, compat.REPAIRS, before == after, detectron2._C.nms_rotated(),
    fast.COCOeval_opt, sorted(n for n in sys.modules if "faster_coco_eval" in n)]))
"""
    )
    result = json.loads(run_python(code, write_package(tmp_path, NEWER)))
    assert result == [[], [], True, "compiled", "compiled", []]


def test_an_old_compiled_detectron2_gets_names_and_keeps_its_extension(tmp_path):
    old = {
        **NEWER,
        "detectron2/structures/masks.py": "import numpy as np\nMASK = np.asarray([1], np.bool)\n",
        "detectron2/data/transforms/transform.py": "from PIL import Image\nx = Image.LINEAR\n",
    }
    code = (
        LOAD_COMPAT
        + """
compat.prepare()
import detectron2._C, numpy
from PIL import Image
from detectron2.structures import masks
import runpy, pathlib
runpy.run_path(str(pathlib.Path(masks.__file__).parents[1] / "data/transforms/transform.py"))
print(detectron2._C.nms_rotated(), numpy.float is float, numpy.object is object,
    Image.LINEAR == Image.BILINEAR)
"""
    )
    assert run_python(code, write_package(tmp_path, old)).split() == ["compiled"] + ["True"] * 3


def test_without_detectron2_the_remedy_is_named():
    code = (
        LOAD_COMPAT
        + """
compat.importlib.util.find_spec = lambda name: None
try:
    compat.prepare()
except ImportError as error:
    print(error)
"""
    )
    message = run_python(code)
    assert "Detectron2" in message and "not installed" in message and "make install" in message


# --- COCO evaluation


def coco_ground_truth(path, images=6, seed=0):
    """Random boxes of three classes, some of them crowds."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images):  # the last image is empty
        for _ in range(8):
            x, y = rng.uniform(0, 80, 2)
            low, high = [(4, 32), (30, 96), (97, 118)][rng.integers(3)]
            w, h = rng.uniform(low, high, 2)
            crowd = int(rng.random() < 0.25)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(rng.integers(1, 4)),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": crowd,
            }
            if crowd:
                mask = np.zeros((200, 200), np.uint8, order="F")
                mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
                rle = mask_utils.encode(mask)
                annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
            annotations.append(annotation)
    content = {
        "info": {},
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 200, "width": 200}
            for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)],
    }
    path.write_text(json.dumps(content))
    return content


def random_detections(content, seed=1):
    """Objects found badly, found twice, taken for another class, and false alarms."""
    rng = np.random.default_rng(seed)
    detections = []
    for a in content["annotations"]:
        for _ in range(rng.integers(0, 3)):
            box = np.array(a["bbox"]) + rng.normal(0, 3, 4)
            category = a["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 4))
            detections.append((a["image_id"], category, box))
    for image in content["images"]:
        detections.append((image["id"], 1, rng.uniform(5, 60, 4)))
    return [
        {
            "image_id": image,
            "category_id": category,
            "bbox": [*box[:2].tolist(), *np.maximum(box[2:], 1).tolist()],
            "score": float(rng.random()),
        }
        for image, category, box in detections
    ]


def pycocotools_evaluation(path, detections):
    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes([dict(d) for d in detections]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(3))
def test_fast_evaluation_equals_pycocotools(tmp_path, seed):
    content = coco_ground_truth(tmp_path / "truth.json", seed=seed)
    detections = random_detections(content, seed=seed + 10)
    expected = pycocotools_evaluation(tmp_path / "truth.json", detections)
    truth = COCO(str(tmp_path / "truth.json"))
    fast = _evaluate_predictions_on_coco(truth, detections, "bbox")
    assert 0.05 < expected.stats[0] < 0.95
    assert any(a["iscrowd"] for a in content["annotations"])
    np.testing.assert_allclose(np.asarray(fast.stats)[:12], expected.stats, atol=1e-9)
    for name in ("precision", "recall"):
        np.testing.assert_allclose(
            np.asarray(fast.eval[name]).reshape(expected.eval[name].shape),
            expected.eval[name],
            atol=1e-9,
        )


def test_the_evaluator_reports_what_pycocotools_finds(tmp_path):
    path = tmp_path / "truth.json"
    content = coco_ground_truth(path)
    detections = random_detections(content)
    name = f"compat_{tmp_path.name}"
    register_coco_instances(name, {}, str(path), str(tmp_path))
    DatasetCatalog.get(name)  # sets the metadata
    evaluator = COCOEvaluator(name, ("bbox",), distributed=False)
    evaluator.reset()
    for image in content["images"]:
        own = [d for d in detections if d["image_id"] == image["id"]]
        boxes = torch.tensor([d["bbox"] for d in own], dtype=torch.float64).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((200, 200))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([d["score"] for d in own], dtype=torch.float64)
        instances.pred_classes = torch.tensor([d["category_id"] - 1 for d in own])
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    results = evaluator.evaluate()["bbox"]
    expected = pycocotools_evaluation(path, detections)
    for metric, value in zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), expected.stats):
        assert results[metric] == pytest.approx(100 * value, abs=1e-3)
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for index in range(3):
        per_class = precision[:, :, index]
        value = 100 * per_class[per_class > -1].mean()
        assert results[f"AP-class {index + 1}"] == pytest.approx(value, abs=1e-3)
