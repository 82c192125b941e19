"""The meta-architecture that trains a student with a teacher."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from detectron2.config import CfgNode, configurable
from detectron2.evaluation.evaluator import inference_context
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..aid import aid_weights
from ..data import PSEUDO_LABELED
from ..distillers import DistillContext, Distiller, build_distillers
from ..losses import Objects, UnreducedLosses
from ..weights import DistillWeights
from .checks import check_compatible, check_keys, check_taps
from .inherit import inherit
from .levels import LevelPair, align, pair_levels
from .outputs import DetectorOutputs, record_calls
from .teacher import DISTILLER_PREFIX, Teacher
from .wrappers import DetectorWrapper, wrap

_STUDENT_PREFIX = "student."
# Detectron2's writers run every 20 iterations; between them no scalar is read off the device.
_LOG_PERIOD = 20


@META_ARCH_REGISTRY.register()
class DistilledDetector(nn.Module):
    """A student detector that in training also learns from a frozen teacher.

    In training the student's own losses are joined by those of the distillers, weighted by AID. In
    inference, or without a teacher, this is the student.

    Its state dict holds the student under its own keys, so that every checkpoint loads in the plain
    student, and what distillation trains beside it under `distiller.`.

    Args:
        student: any detector with a Detectron2 backbone.
        teacher: None switches distillation off.
        distillers: methods by name.
        pairs: levels that the distillers compare.
        weigh: AID's weights, from the teacher's losses and `student`, the student's own or None; None
            for distillation without AID.
        relative: give it the student's losses.
        weight: factor on all distillation losses, lambda in AID eq. 1.
        warmup_iters: over this many iterations the factor rises linearly from 0.
        recompute: keep nothing of a method's forward pass, but run it again in the backward pass.
        input_format: channel order of the images in `batched_inputs`.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: Teacher | None = None,
        distillers: dict[str, Distiller] | None = None,
        pairs: list[LevelPair] = (),
        weigh: Callable[..., DistillWeights] | None = None,
        relative: bool = False,
        weight: float = 1.0,
        warmup_iters: int = 0,
        recompute: bool = False,
        input_format: str = "BGR",
    ):
        super().__init__()
        self.student = student
        self.distiller = nn.ModuleDict(distillers or {})
        self.teacher = teacher
        self.pairs = pairs
        self.weigh = weigh
        self.relative = relative
        self.weight = weight
        self.warmup_iters = warmup_iters
        self.recompute = recompute
        self.input_format = input_format
        self._wrapper = wrap(student)
        self._register_state_dict_hook(_strip_student_prefix)
        # The public name of this method is younger than torch 2.4.
        self._register_load_state_dict_pre_hook(_add_student_prefix, with_module=True)

    @classmethod
    def from_config(cls, cfg: CfgNode):
        from ..config import plain_student

        student_cfg = plain_student(cfg)
        if cfg.DISTILL.ENABLED:
            check_keys(cfg)
        student = build_model(student_cfg)
        if not cfg.DISTILL.ENABLED:
            return {"student": student}

        # Whatever distillation builds, the student's own random numbers stay those of plain
        # training.
        device = torch.device(cfg.MODEL.DEVICE)
        gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            teacher = Teacher.from_config(cfg)
            check_compatible(cfg, student, teacher)
            if cfg.DISTILL.INHERIT:
                inherit(student, teacher.model)
            teacher.speed_up(cfg.DISTILL.PRECISION, cfg.DISTILL.TEACHER.COMPILE)
            pairs = pair_levels(wrap(student), teacher.wrapper)
            distillers = build_distillers(
                cfg, DistillContext(pairs, wrap(student), teacher.wrapper)
            )
            check_taps(cfg, student, teacher, distillers)
        weigh = None
        if cfg.DISTILL.AID.ENABLED:
            weigh = partial(
                aid_weights,
                alpha=cfg.DISTILL.AID.ALPHA,
                granularity=cfg.DISTILL.AID.GRANULARITY,
                normalizer=cfg.DISTILL.AID.NORMALIZER,
                rescale=cfg.DISTILL.AID.RESCALE,
            )
        return {
            "student": student,
            "teacher": teacher,
            "distillers": distillers,
            "pairs": pairs,
            "weigh": weigh,
            "relative": cfg.DISTILL.AID.RELATIVE,
            "weight": cfg.DISTILL.WEIGHT,
            "warmup_iters": cfg.DISTILL.WARMUP_ITERS,
            "recompute": cfg.DISTILL.RECOMPUTE,
            "input_format": cfg.INPUT.FORMAT,
        }

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
        objects = Objects.from_instances([x["instances"] for x in batched_inputs], self.device)
        # The labels are read by tools/profile_step.py, and in any profile.
        with record_function("aid_d2.student"):
            student, losses = self._observe_student(batched_inputs, objects)
        taps = self._taps(self.teacher.wrapper)
        images = student.calls[self.student.backbone][-1].inputs[0] if self.shares_images else None
        with record_function("aid_d2.teacher"):
            teacher = self.teacher.observe(
                batched_inputs, self.input_format, self.needs_teacher_head, taps, images
            )
        teacher.objects = objects
        with torch.autocast(self.device.type, enabled=False):
            with record_function("aid_d2.weights"):
                weights = self._weight(student, teacher, batched_inputs)
            losses.update(self._distill(student, teacher, weights))
        return losses

    @cached_property
    def shares_images(self) -> bool:
        """Whether the teacher sees the batch that the student has prepared; looked at only once."""
        return self.teacher.prepares_images_like(self.student, self.input_format)

    @property
    def needs_teacher_head(self) -> bool:
        """Whether the teacher's predictions are looked at, besides its maps."""
        return self.weigh is not None or self._needs_predictions

    @property
    def _needs_predictions(self) -> bool:
        return any(distiller.needs_predictions for distiller in self.distiller.values())

    def _taps(self, wrapper: DetectorWrapper) -> list[nn.Module]:
        return [tap for distiller in self.distiller.values() for tap in distiller.taps(wrapper)]

    def _observe_student(
        self, batched_inputs: list[dict], objects: Objects
    ) -> tuple[DetectorOutputs, dict[str, Tensor]]:
        """What the student computes for its own losses, and these."""
        wrapper = self._wrapper
        own = [module for module in (self.student.backbone, wrapper.head) if module is not None]

        def features() -> dict[int, Tensor]:
            return wrapper.features(calls[self.student.backbone][-1].output)

        with record_calls([*own, *self._taps(wrapper)]) as calls:
            with wrapper.sharing_matches(features, objects):
                losses = self.student(batched_inputs)
        head_outputs = calls[wrapper.head][-1].output if wrapper.head is not None else None
        return DetectorOutputs(features(), head_outputs, calls, objects=objects), losses

    def _weight(
        self, student: DetectorOutputs, teacher: DetectorOutputs, batched_inputs: list[dict]
    ) -> DistillWeights:
        if self.weigh is None:
            return DistillWeights.full(teacher.features)
        losses = self.teacher.losses(teacher, teacher.objects)
        weights = self.weigh(losses, student=self._own_losses(student) if self.relative else None)
        # A teacher's loss on its own labels cannot show where it is wrong.
        pseudo_labeled = [i for i, x in enumerate(batched_inputs) if x.get(PSEUDO_LABELED)]
        if pseudo_labeled:
            weights = weights.with_full(pseudo_labeled)
        self._log(losses, weights)
        return weights

    @torch.no_grad()
    def _own_losses(self, student: DetectorOutputs) -> UnreducedLosses:
        # In eval mode, lest what is computed here again moves the statistics of a batch norm.
        with inference_context(self.student):
            return self._wrapper.unreduced_losses(
                student.features, student.head_outputs, student.objects
            )

    def _distill(
        self, student: DetectorOutputs, teacher: DetectorOutputs, weights: DistillWeights
    ) -> dict[str, Tensor]:
        student, teacher, weights = align(self.pairs, student, teacher, weights)
        if self._needs_predictions:
            student.predictions = self._wrapper.predictions(student.features, student.head_outputs)
            teacher.predictions = self.teacher.wrapper.predictions(
                teacher.features, teacher.head_outputs
            )
        factor = self.weight
        if self.warmup_iters > 0:
            factor *= min(get_event_storage().iter / self.warmup_iters, 1.0)
        losses = {}
        for name, distiller in self.distiller.items():
            precision = self.teacher.autocast(distiller.supports_bf16)
            with record_function(f"aid_d2.{name}"), precision:
                parts = self._run(distiller, student, teacher, weights)
            losses.update({f"loss_{name}_{part}": factor * loss for part, loss in parts.items()})
        return losses

    def _run(
        self,
        distiller: Distiller,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        weights: DistillWeights,
    ) -> dict[str, Tensor]:
        if not self.recompute:
            return distiller(student, teacher, weights)

        def run(*features: Tensor) -> dict[str, Tensor]:
            # The second run has to decode again what the first one keeps there.
            return distiller(_without_caches(student), _without_caches(teacher), weights)

        # By its arguments `checkpoint` knows the devices whose random numbers it restores.
        return checkpoint(run, *student.features.values(), use_reentrant=False)

    def _log(self, losses: UnreducedLosses, weights: DistillWeights) -> None:
        storage = get_event_storage()
        # Other processes have no writer, which would empty their storage.
        if (storage.iter + 1) % _LOG_PERIOD or not comm.is_main_process():
            return
        scalars = {"teacher/loss_dense": losses.anchor_losses.sum() / losses.batch_normalizer}
        if losses.roi is not None:
            scalars["teacher/loss_roi"] = losses.mean_roi
        for stride, x in weights.maps.items():
            scalars[f"aid/weight_stride{stride}"] = x.mean()
        # A median over the last 20 of these would be one over 400 iterations.
        storage.put_scalars(**scalars, smoothing_hint=False)
        storage.put_histogram("aid/weight", torch.cat([x.flatten() for x in weights.maps.values()]))

    def _apply(self, fn, *args, **kwargs):
        # The teacher follows the student to its device.
        if self.teacher is not None:
            self.teacher.model._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)


def _without_caches(outputs: DetectorOutputs) -> DetectorOutputs:
    predictions = outputs.predictions
    return replace(outputs, predictions=replace(predictions) if predictions is not None else None)


def _strip_student_prefix(module, state_dict, prefix, local_metadata) -> None:
    old = prefix + _STUDENT_PREFIX
    for entries in (state_dict, getattr(state_dict, "_metadata", {})):
        for key in [key for key in entries if key.startswith(old)]:
            entries[prefix + key[len(old) :]] = entries.pop(key)


def _add_student_prefix(module, state_dict, prefix, *args) -> None:
    for key in list(state_dict):
        bare = key[len(prefix) :]
        if key.startswith(prefix) and not bare.startswith((DISTILLER_PREFIX, _STUDENT_PREFIX)):
            state_dict[prefix + _STUDENT_PREFIX + bare] = state_dict.pop(key)
    # Versions by module, which torch hands over at the top level alone. They are the caller's, and
    # only added to.
    versions = getattr(state_dict, "_metadata", {})
    for key in list(versions):
        if not f"{key}.".startswith((DISTILLER_PREFIX, _STUDENT_PREFIX)):
            versions.setdefault(f"{_STUDENT_PREFIX}{key}".rstrip("."), versions[key])
