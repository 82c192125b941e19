"""A first distillation in minutes on two cores: synthetic scenes, a teacher and two students.

`make quickstart` runs this. Finished steps are kept: an interrupted run goes on where it stopped.
"""

import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from scenes import SceneSet, write_scene_set
from tabulate import tabulate

from aid_d2 import load_config
from aid_d2.aid import AID
from aid_d2.config import use_cpu_without_gpu
from aid_d2.data.paths import datasets_root
from aid_d2.engine.metrics import read_metrics
from aid_d2.modeling.teacher import Teacher
from aid_d2.visualization import (
    draw_boxes,
    draw_weight_map,
    labeled_input,
    object_weights,
    weight_maps,
)
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "teacher": "gfl_teacher",
    "student": "gfl_student",
    "student + distillation": "gfl_student_distilled",
}
OUTPUT = Path("output/quickstart")
COMPARISON, WEIGHTS = OUTPUT / "comparison.png", OUTPUT / "aid_weights.png"


def main() -> None:
    os.chdir(ROOT)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    write_scene_set(datasets_root() / "synthetic_road", SceneSet(images=600))
    rows = []
    for number, (name, config) in enumerate(RUNS.items(), 1):
        print(f"\n[{number}/{len(RUNS)}] {name}", flush=True)
        cfg = config_of(config)
        # A run of an earlier version of its config does not count.
        saved = Path(cfg.OUTPUT_DIR, "config.yaml")
        changed = saved.exists() and saved.read_text() != cfg.dump()
        if changed or "bbox/AP" not in last_metrics(cfg):
            train(config, "--overwrite" if changed else "--resume")
        rows.append(table_row(name, cfg))
    draw_pictures()
    print("\n" + tabulate(rows, headers="keys", floatfmt=".2f"))
    print(f"\nThe same scene seen by each: {COMPARISON}; AID's weights by the paper's D: {WEIGHTS}")
    export_and_time()


def config_of(name: str) -> CfgNode:
    cfg = load_config(f"configs/quickstart/{name}.yaml")
    use_cpu_without_gpu(cfg)
    return cfg


def train(config: str, flag: str) -> None:
    """Run train_net.py, showing its progress and its result."""
    command = ["train_net.py", flag, "--config-file", f"configs/quickstart/{config}.yaml"]
    print("python " + " ".join(command), flush=True)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = []
    for line in process.stdout:
        output.append(line)
        if "eta:" in line:
            print("  " + line[line.index("eta:") :].split("  lr:")[0], flush=True)
    if process.wait() != 0:
        sys.exit("".join(output[-40:]) + f"\n{' '.join(command)} failed.")


def export_and_time() -> None:
    """Write teacher and distilled student as ONNX files, and time them beside PyTorch."""
    torch_runs, files = [], []
    for name in ("teacher", "student + distillation"):
        cfg = config_of(RUNS[name])
        name = name.partition(" ")[0]
        config, weights = f"{cfg.OUTPUT_DIR}/config.yaml", f"{cfg.OUTPUT_DIR}/model_final.pth"
        file = OUTPUT / f"{name}.onnx"
        images = ["--images", str(datasets_root() / "synthetic_road/training/image_2")]
        if not file.exists() or file.stat().st_mtime < Path(weights).stat().st_mtime:
            file.unlink(missing_ok=True)
            print(f"\naid-d2 export: {file}", flush=True)
            options = ["--config-file", config, "--weights", weights, "--output", str(file)]
            aid_d2("export", *options, *images)
        torch_runs.append(f"{name}={config}:{weights}")
        files.append(f"{name}={file}")
    print("\naid-d2 benchmark", flush=True)
    aid_d2("benchmark", *images, "--torch", *torch_runs, "--onnx", *files)


def aid_d2(*arguments: str) -> None:
    """Run one of the commands."""
    subprocess.run([sys.executable, "-W", "ignore", "-m", "aid_d2", *arguments], check=True)


def metrics(cfg: CfgNode) -> list[dict]:
    """What a run wrote every 20 iterations, and its evaluation at the end."""
    return read_metrics(Path(cfg.OUTPUT_DIR, "metrics.json"))


def last_metrics(cfg: CfgNode) -> dict:
    lines = metrics(cfg)
    return lines[-1] if lines else {}


def table_row(name: str, cfg: CfgNode) -> dict:
    result = last_metrics(cfg)
    seconds = [line["time"] for line in metrics(cfg) if "time" in line]
    parameters = sum(p.numel() for p in build_student(cfg).parameters())
    return {
        "": name,
        "AP": result["bbox/AP"],
        "AP50": result["bbox/AP50"],
        "parameters (M)": parameters / 1e6,
        "s / step": median(seconds),
    }


def build_student(cfg: CfgNode):
    cfg = cfg.clone()
    cfg.DISTILL.ENABLED = False
    return build_model(cfg).eval()


def trust_text(weight: float) -> str:
    return "w=?" if math.isnan(weight) else f"w={weight:.2f}"


def number_of_large_objects(entry: dict) -> int:
    """Objects of at least 30 pixels' height, without ignore regions."""
    return sum(x["bbox"][3] >= 30 and not x["iscrowd"] for x in entry["annotations"])


def draw_pictures() -> None:
    """One scene: what AID makes of the teacher on it, and what teacher and students detect."""
    cfg = config_of(RUNS["student + distillation"])
    entries = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    entry = max(entries, key=number_of_large_objects)
    example = labeled_input(cfg, entry)
    image = read_image(entry["file_name"], "RGB")
    # As in the paper, by the teacher's loss alone, and of each object by itself.
    teacher, aid = Teacher.from_config(cfg), AID(alpha=0.5, granularity="instance", relative=False)
    (weights,) = object_weights(teacher, [example], cfg.INPUT.FORMAT, aid.alpha)
    truth = example["instances"]
    scale = image.shape[1] / example["image"].shape[-1]
    labels = draw_boxes(
        image,
        "labels, and AID's weight of the teacher",
        truth.gt_boxes.tensor * scale,
        [f"{classes[c]} {trust_text(w)}" for c, w in zip(truth.gt_classes, weights.tolist())],
        weights.tolist(),
    )
    found = [draw_detections(name, example, image, classes) for name in RUNS]
    write_grid(COMPARISON, [labels, *found])
    maps = weight_maps(teacher, [example], cfg.INPUT.FORMAT, aid)
    of_levels = [
        draw_weight_map(image, f"AID's weights at stride {stride}", x[0], stride * scale)
        for stride, x in list(maps.items())[:3]
    ]
    write_grid(WEIGHTS, [labels, *of_levels])


def draw_detections(name: str, example: dict, image: np.ndarray, classes: list[str]) -> np.ndarray:
    cfg = config_of(RUNS[name])
    model = build_student(cfg)
    DetectionCheckpointer(model).load(f"{cfg.OUTPUT_DIR}/model_final.pth")
    with torch.no_grad():
        found = model([example])[0]["instances"]
    found = found[found.scores > 0.3]
    labels = [f"{classes[c]} {s:.2f}" for c, s in zip(found.pred_classes, found.scores)]
    return draw_boxes(image, name, found.pred_boxes.tensor, labels)


def write_grid(file: Path, panels: list[np.ndarray]) -> None:
    """Two by two."""
    grid = np.vstack([np.hstack(panels[:2]), np.hstack(panels[2:])])
    cv2.imwrite(str(file), grid[:, :, ::-1])


if __name__ == "__main__":
    main()
