"""Small detectors, teachers and images that the tests share."""

import importlib.util
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from aid_d2 import add_aid_config
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_CLASSES = 3

# The maps are tiny, and threads would only wait for each other; also of processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 16,
    # Most tests compare with the teacher's exact outputs.
    "DISTILL.PRECISION": "float32",
}
SMALL_DETECTOR = {
    "GFL": {"MODEL.GFL.NUM_CLASSES": NUM_CLASSES, "MODEL.GFL.NUM_CONVS": 1},
    "FCOS": {"MODEL.FCOS.NUM_CLASSES": NUM_CLASSES, "MODEL.FCOS.NUM_CONVS": 1},
    "RetinaNet": {
        "MODEL.RETINANET.NUM_CLASSES": NUM_CLASSES,
        "MODEL.RETINANET.NUM_CONVS": 1,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]],
    },
    "FasterRCNN": {
        "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    },
}


def _small_cfg(detector, changes=None):
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"Base-{detector}.yaml"))
    settings = {**SMALL, **SMALL_DETECTOR[detector], **(changes or {})}
    cfg.merge_from_list([x for item in settings.items() for x in item])
    return cfg


def _build_seeded(cfg, seed):
    torch.manual_seed(seed)
    return build_model(cfg)


def _make_batch(counts=(2, 1), size=(64, 96), seed=0):
    """A mini-batch with `counts[i]` random objects in image i."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    batch = []
    for count in counts:
        side = 10 + 40 * torch.rand(count, 2, generator=generator)
        corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - side)
        instances = Instances(
            size,
            gt_boxes=Boxes(torch.cat([corner, corner + side], dim=1)),
            gt_classes=torch.randint(NUM_CLASSES, (count,), generator=generator),
        )
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


@pytest.fixture(scope="session")
def small_cfg():
    """`small_cfg(detector, changes)`: a base config of the repository, made small."""
    return _small_cfg


@pytest.fixture(scope="session")
def build_seeded():
    """`build_seeded(cfg, seed)`: the model that a run with this seed starts from."""
    return _build_seeded


@pytest.fixture(scope="session")
def make_batch():
    """`make_batch(counts, size, seed)`: images with random objects."""
    return _make_batch


@pytest.fixture(scope="session")
def with_ignore_region():
    """`with_ignore_region(batch, box)`: the batch, each image with an instance of class -1."""

    def add(batch, box):
        for record in batch:
            old = record["instances"]
            record["instances"] = Instances(
                old.image_size,
                gt_boxes=Boxes.cat([old.gt_boxes, Boxes(torch.tensor([box]))]),
                gt_classes=torch.cat([old.gt_classes, torch.tensor([-1])]),
            )
        return batch

    return add


@pytest.fixture(scope="session")
def save_teacher(tmp_path_factory):
    """`save_teacher(cfg, model)`: its config and weights as files, for DISTILL.TEACHER."""

    def save(cfg, model):
        folder = tmp_path_factory.mktemp("teacher")
        (folder / "config.yaml").write_text(cfg.dump())
        torch.save({"model": model.state_dict()}, folder / "model.pth")
        return {
            "DISTILL.TEACHER.CONFIG_FILE": str(folder / "config.yaml"),
            "DISTILL.TEACHER.WEIGHTS": str(folder / "model.pth"),
        }

    return save


@pytest.fixture(scope="session")
def teachers(save_teacher):
    """A teacher of each detector, as DISTILL.TEACHER names it."""
    result = {}
    for detector in SMALL_DETECTOR:
        cfg = _small_cfg(detector)
        result[detector] = save_teacher(cfg, _build_seeded(cfg, seed=100))
    return result


@pytest.fixture(scope="session")
def distilled_cfg(teachers):
    """`distilled_cfg(student, changes, teacher)`: a small DistilledDetector's config.

    Not with the default AID, which leaves teachers as good as these alone:
    modeling/test_default_aid.py has that.
    """

    def make(student, changes=None, teacher=None):
        plain = _small_cfg(student)
        return _small_cfg(
            student,
            {
                "DISTILL.STUDENT": plain.MODEL.META_ARCHITECTURE,
                "MODEL.META_ARCHITECTURE": "DistilledDetector",
                **teachers[teacher or student],
                "DISTILL.METHODS": ("AttentionGuided", "NonLocal"),
                "DISTILL.AID.RELATIVE": False,
                "DISTILL.AID.GRANULARITY": "instance",
                "DISTILL.AID.ALPHA": 0.1,
                **(changes or {}),
            },
        )

    return make


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory):
    """Eight images of coloured rectangles in COCO format: an entry of DATASETS.COCO_JSON."""
    root = tmp_path_factory.mktemp("rectangles")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(8):
        picture = np.full((64, 96, 3), 90, np.uint8)
        for label in range(3):
            x, y = int(rng.integers(0, 60)), int(rng.integers(0, 30))
            color = [0, 0, 0]
            color[label] = 255
            cv2.rectangle(picture, (x, y), (x + 30, y + 30), color, -1)
            box = {"bbox": [x, y, 30, 30], "area": 900, "iscrowd": 0}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, **box}
            )
        cv2.imwrite(str(root / f"{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 96})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate("rgb")]
    coco = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(coco))
    return ["rectangles", str(root / "boxes.json"), str(root)]


@pytest.fixture(scope="session")
def load_tool():
    """`load_tool(name)`: the module tools/<name>.py.

    Not by `import tools`: Detectron2's source release installs a package of that name.
    """

    def load(name):
        path = CONFIGS.parent / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def storage():
    """The event storage that a training step needs, at iteration 0."""
    with EventStorage(0) as events:
        yield events
