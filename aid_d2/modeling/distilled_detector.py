"""The meta-architecture that trains a student with a teacher."""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import get_event_storage

from ..aid import AID
from ..config import plain_student
from ..distillers import Distiller, build_distillers
from ..structures import DetectorOutputs, DistillBatch, DistillWeights, Objects
from .checks import check_input_formats, check_nonnegative, check_recorded_modules
from .context import DistillContext, pair_levels
from .inherit import inherit
from .teacher import DISTILLER_PREFIX, Teacher
from .wrappers import wrap

STUDENT_PREFIX = "student."


@META_ARCH_REGISTRY.register()
class DistilledDetector(nn.Module):
    """A student detector that in training also learns from a frozen teacher.

    In training the student's own losses are joined by those of the distillers, weighted by AID. In
    inference, or without a teacher, this is the student.

    Its state dict holds the student under its own keys, so that every checkpoint loads in the plain
    student, and what distillation trains beside it under `distiller.`. Attributes that it does not
    have are the student's, so that code for the plain detector finds its parts.

    Args:
        student: any detector with a Detectron2 backbone.
        teacher: None switches distillation off.
        context: both detectors and the levels that the distillers compare.
        distillers: methods by name.
        aid: gives the weights of distillation.
        weight: factor on all distillation losses, lambda in AID eq. 1.
        warmup_iters: over this many iterations the factor rises linearly from 0.
        input_format: channel order of the images in `batched_inputs`.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: Teacher | None = None,
        context: DistillContext | None = None,
        distillers: dict[str, Distiller] | None = None,
        aid: AID | None = None,
        weight: float = 1.0,
        warmup_iters: int = 0,
        input_format: str = "BGR",
    ):
        super().__init__()
        self.register_state_dict_post_hook(_strip_student_prefix)
        self.register_load_state_dict_pre_hook(_add_student_prefix)
        self.student = student
        self.distiller = nn.ModuleDict(distillers or {})
        if teacher is not None:
            # Beside the methods, whose part of a checkpoint the plain student ignores.
            self.distiller.register_buffer("aid_gap", torch.zeros(2, device=self.device))
        self.teacher = teacher
        self.context = context
        self.aid = aid
        self.weight = weight
        self.warmup_iters = warmup_iters
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: CfgNode):
        student_cfg = plain_student(cfg)
        if not cfg.DISTILL.ENABLED:
            return {"student": build_model(student_cfg)}
        check_nonnegative(cfg, "DISTILL.WEIGHT", "DISTILL.WARMUP_ITERS")
        student = build_model(student_cfg)

        with _own_random_numbers(torch.device(cfg.MODEL.DEVICE)):
            return _assemble(cfg, student, Teacher.from_config(cfg))

    @classmethod
    def of(cls, student: nn.Module, teacher: Teacher, cfg: CfgNode) -> "DistilledDetector":
        """A distilled detector of two that are built already, for instance by LazyConfig.

        Args:
            student: any detector with a Detectron2 backbone.
            teacher: such as :meth:`Teacher.load_lazy` gives, on the device of the training, where
                PRECISION auto is decided; the student may go there later.
            cfg: :func:`aid_d2.config.default_config` with the keys of DISTILL, and INPUT.FORMAT of
                the images. Of DISTILL.TEACHER only COMPILE counts.

        Raises:
            ValueError, NotImplementedError: they do not fit each other or the methods.
        """
        check_nonnegative(cfg, "DISTILL.WEIGHT", "DISTILL.WARMUP_ITERS")
        with _own_random_numbers(next(student.parameters()).device):
            return cls(**_assemble(cfg, student, teacher))

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: as for the student.

        Returns:
            in training, the student's losses and `loss_<method>_<part>` of each distiller; in
            inference, the student's detections.
        """
        if not self.training or self.teacher is None:
            return self.student(batched_inputs)
        objects = Objects.from_inputs(batched_inputs, self.device, self.aid.needs_masks)
        recorded = [
            *self._recorded("student"),
            *self.aid.recorded_modules(self.context.student),
        ]
        student, losses = self.context.student.forward_training(batched_inputs, recorded)
        with_head = self.needs_predictions or self.aid.judges()
        teacher = self.context.teacher.forward_features(
            batched_inputs, self.input_format, with_head, self._recorded("teacher")
        )
        with torch.autocast(self.device.type, enabled=False):
            weights = self.aid(self.context, student, teacher, objects, self.distiller.aid_gap)
            batch = align(self.context, student, teacher, objects, weights, self.needs_predictions)
            for name, distiller in self.distiller.items():
                with self.context.teacher.autocast(distiller.supports_bf16):
                    parts = distiller(batch)
                losses.update({f"loss_{name}_{x}": self.factor * y for x, y in parts.items()})
        return losses

    @property
    def factor(self) -> float:
        """Factor on all distillation losses in this iteration."""
        if self.warmup_iters == 0:
            return self.weight
        return self.weight * min(get_event_storage().iter / self.warmup_iters, 1.0)

    @property
    def needs_teacher_head(self) -> bool:
        """Whether what the teacher predicts is ever looked at, besides its maps."""
        return self.aid.enabled or self.needs_predictions

    @property
    def needs_predictions(self) -> bool:
        """Whether a distiller compares predictions."""
        return any(distiller.needs_predictions for distiller in self.distiller.values())

    def _recorded(self, side: str) -> list[nn.Module]:
        """Modules of a detector whose calls the distillers want to know."""
        wrapper = getattr(self.context, side)
        return [x for y in self.distiller.values() for x in y.recorded_modules(wrapper, side)]

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "student":
                raise
            return getattr(self.student, name)

    def _apply(self, fn, *args, **kwargs):
        # The teacher follows the student to its device.
        if self.teacher is not None:
            self.teacher.model._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)


def _own_random_numbers(device: torch.device) -> AbstractContextManager:
    """Whatever distillation builds here, the student's random numbers stay those of training it
    alone.
    """
    gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=gpus)


def _assemble(cfg: CfgNode, student: nn.Module, teacher: Teacher) -> dict:
    """The arguments of a DistilledDetector, checked against each other."""
    aid = AID.from_config(cfg.DISTILL.AID)
    check_input_formats(cfg.INPUT.FORMAT, teacher)
    if cfg.DISTILL.INHERIT:
        inherit(student, teacher.model)
    teacher.speed_up(cfg.DISTILL.PRECISION, cfg.DISTILL.TEACHER.COMPILE)
    context = pair_levels(wrap(student), teacher.wrapper)
    distillers = build_distillers(cfg, context)
    check_recorded_modules(cfg, context, distillers)
    return {
        "student": student,
        "teacher": teacher,
        "context": context,
        "distillers": distillers,
        "aid": aid.suited(context.student, context.teacher),
        "weight": cfg.DISTILL.WEIGHT,
        "warmup_iters": cfg.DISTILL.WARMUP_ITERS,
        "input_format": cfg.INPUT.FORMAT,
    }


def align(
    context: DistillContext,
    student: DetectorOutputs,
    teacher: DetectorOutputs,
    objects: Objects,
    weights: DistillWeights,
    with_predictions: bool,
) -> DistillBatch:
    """Cut the paired maps of both detectors, and the weights, to the cells that both have.

    Both pyramids start at the same corner of the image and have the same stride, so that their
    sizes differ by padding alone. All maps come out in float32, channels last.

    Args:
        context: the detectors, and the levels that they share.
        student, teacher: what they computed.
        objects: the ground truth.
        weights: AID's, for the teacher's maps.
        with_predictions: whether their predictions on these cells are wanted.

    Raises:
        ValueError: student and teacher have maps of other numbers of images.
    """
    cut = {}, {}, {}
    for pair in context.pairs:
        maps = [x[pair.stride] for x in (student.features, teacher.features, weights.maps)]
        if len(maps[0]) != len(maps[1]):
            raise ValueError(
                f"The student has maps of {len(maps[0])} images and the teacher of "
                f"{len(maps[1])}: one of them splits or repeats a batch, and cannot be "
                "compared with the other."
            )
        height, width = (min(x.shape[dim] for x in maps) for dim in (-2, -1))
        for result, x in zip(cut, maps):
            result[pair.stride] = x[..., :height, :width].to(
                torch.float32, memory_format=torch.channels_last
            )
    batch = DistillBatch(
        student=replace(student, features=cut[0]),
        teacher=replace(teacher, features=cut[1]),
        objects=objects,
        weights=DistillWeights(cut[2]),
    )
    if with_predictions:
        for wrapper, outputs in (
            (context.student, batch.student),
            (context.teacher, batch.teacher),
        ):
            outputs.predictions = wrapper.predictions(outputs.features, outputs.head_outputs)
    return batch


def _strip_student_prefix(module: nn.Module, state_dict, prefix: str, local_metadata) -> None:
    """Give the student its own keys in a state dict, and in the versions that torch keeps there."""
    old = prefix + STUDENT_PREFIX
    for entries in (state_dict, getattr(state_dict, "_metadata", {})):
        for key in [key for key in entries if key.startswith(old)]:
            entries[prefix + key.removeprefix(old)] = entries.pop(key)


def _add_student_prefix(module: nn.Module, state_dict, prefix: str, *args) -> None:
    """Undo :func:`_strip_student_prefix`, also for the file of a plain student."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        bare = key.removeprefix(prefix)
        if not bare.startswith((DISTILLER_PREFIX, STUDENT_PREFIX)):
            state_dict[prefix + STUDENT_PREFIX + bare] = state_dict.pop(key)
    # Torch hands the versions over at the top level alone. They are the caller's: only add to them.
    versions = getattr(state_dict, "_metadata", {})
    for key in list(versions):
        if not f"{key}.".startswith((DISTILLER_PREFIX, STUDENT_PREFIX)):
            versions.setdefault(f"{STUDENT_PREFIX}{key}".rstrip("."), versions[key])
