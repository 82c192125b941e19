"""A step of training on a random batch, to be timed: distilled, of the student, of the teacher.

Weights are random and images are noise, on which cost does not depend; an RPN proposes its anchors,
so that the box head of a Faster R-CNN has its full batch, as in training.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from ..aid import BATCH_PERIOD
from ..modeling.distilled_detector import DistilledDetector
from ..modeling.teacher import load_teacher_config
from ..modeling.wrappers import wrap
from .trainer import Trainer


@dataclass(frozen=True)
class Case:
    """A config and the batch that it works on.

    Attributes:
        height, width: of an image, in pixels.
        images: in a batch.
        objects: in an image.
    """

    cfg: CfgNode
    height: int
    width: int
    images: int
    objects: int

    @property
    def batch_name(self) -> str:
        return f"{self.images} x {self.height}x{self.width}, {self.objects} objects"

    def changed(self, *opts) -> "Case":
        """The same with other keys and values in its config."""
        cfg = self.cfg.clone()
        cfg.merge_from_list(list(opts))
        return replace(self, cfg=cfg)

    @property
    def student(self) -> "Case":
        """Training of the student alone."""
        return self.changed("DISTILL.ENABLED", False)


def with_random_teacher(cfg: CfgNode, folder: Path) -> CfgNode:
    """The config with a teacher of random weights in a file."""
    teacher = load_teacher_config(cfg)
    teacher.MODEL.DEVICE = "cpu"
    torch.save({"model": build_model(teacher).state_dict()}, folder / "teacher.pth")
    cfg = cfg.clone()
    cfg.DISTILL.TEACHER.WEIGHTS = str(folder / "teacher.pth")
    return cfg


def observer(case: Case, model: DistilledDetector) -> Callable[[], None]:
    """A forward pass of a model's teacher."""
    batch, teacher = noise(case, model), model.context.teacher
    channels, head = case.cfg.INPUT.FORMAT, model.needs_teacher_head
    return lambda: teacher.forward_features(batch, channels, head)


def stepper(case: Case) -> tuple[DistilledDetector, Callable[[], None]]:
    """A detector, and a function that takes one step of its training."""
    torch.manual_seed(0)
    model = Trainer.build_model(case.cfg).train()
    for module in model.modules():
        if isinstance(module, StandardRPNHead):
            # Random deltas let most boxes grow to the whole image, of which NMS leaves one.
            nn.init.zeros_(module.anchor_deltas.weight)
    batch = noise(case, model)
    optimizer = build_optimizer(case.cfg, model)
    # A rate of 0 costs the same, and random weights stay as harmless as they are.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    amp = case.cfg.SOLVER.AMP.ENABLED
    dtype = torch.float16 if amp else torch.bfloat16
    half = torch.autocast(model.device.type, dtype, enabled=amp or case.cfg.SOLVER.BF16)
    scaler = torch.amp.GradScaler(model.device.type, enabled=amp)

    def step() -> None:
        # The dearest iteration: the weight of a batch is judged in every fourth.
        with EventStorage(BATCH_PERIOD - 1):
            with half:
                losses = model(batch)
            loss = sum(losses.values())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return model, step


def noise(case: Case, model: DistilledDetector) -> list[dict]:
    """A batch of random images and objects."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.height, case.width)
    size, batch = torch.tensor([case.width, case.height]), []
    num_classes = wrap(model.student).num_classes
    for _ in range(case.images):
        side = size * (0.05 + 0.3 * torch.rand(case.objects, 2, generator=generator))
        corner = (size - side) * torch.rand(case.objects, 2, generator=generator)
        instances = Instances(shape)
        instances.gt_boxes = Boxes(torch.cat([corner, corner + side], dim=1))
        instances.gt_classes = torch.randint(num_classes, (case.objects,), generator=generator)
        image = torch.randint(256, (3, *shape), generator=generator, dtype=torch.uint8)
        extent = {"height": case.height, "width": case.width}
        batch.append({"image": image, "instances": instances, **extent})
    return batch


def interleave(steps: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each; they run in turn, so that what disturbs one disturbs the others."""
    times = defaultdict(list)
    for _ in range(repeats + 1):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
