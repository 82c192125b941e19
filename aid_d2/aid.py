"""Adaptive instance distillation (AID): how much the teacher counts, and where.

AID (Lan & Tian, ICPR 2022, arXiv 2201.11097, eq. 1) multiplies the distillation loss of an
instance by ``exp(-alpha * D)``, where D is the teacher's own task loss on that instance: where the
teacher is wrong, its knowledge counts less. What an instance is, the *granularity*, is a choice:

============  ====================================================================================
``batch``     one weight for all images of all GPUs, of a running mean: with `relative`, the
              strength follows the gap between student and teacher
``level``     one weight per pyramid level for the batch, as in the authors' released code
``image``     one weight per image and level: the paper's i as one training image
``instance``  one weight per ground-truth object, painted into its box; the background apart
``location``  one weight per location of the pyramid
============  ====================================================================================

Each fills the same :class:`DistillWeights`, one map per level with values in (0, 1].
:class:`AID` is what a detector is trained with; the functions below it are pure, on the
:class:`UnreducedLosses` that a detector's wrapper gives.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from .config import CONFIG_EXTENSIONS
from .layers.cells import smallest_objects
from .layers.distributed import mean_over_gpus
from .modeling.context import DistillContext
from .modeling.wrappers import DetectorWrapper
from .structures import DetectorOutputs, DistillWeights, LevelShape, Objects, UnreducedLosses

logger = logging.getLogger(__name__)

GRANULARITIES = ("batch", "level", "image", "instance", "location")
NORMALIZERS = ("native", "per_level")
# By name, the values of the keys that a preset decides. PAPER: the authors' released code.
PRESETS = {
    "PAPER": {
        "ALPHA": 0.1,
        "GRANULARITY": "level",
        "NORMALIZER": "native",
        "RELATIVE": False,
    }
}

# exp(-80) = 2e-35 is still a normal float32, so that no weight becomes 0.
_MAX_EXPONENT = 80.0

# `batch` judges in every fourth iteration, and its weight stays until the next: the teacher's head,
# which methods of maps do without, would cost a tenth of each step.
BATCH_PERIOD = 4

# Of the running mean of D under `batch`: about the last four that were judged. D of a single batch
# is noisy, and chance alone would take strength from a teacher as good as its student.
GAP_MOMENTUM = 0.75

# The most that one batch adds to that mean, in either direction, lest a broken one stays in it.
_MAX_GAP = 100.0

# As often as Detectron2's writers run; in between no scalar is read off the device.
_LOG_PERIOD = 5 * BATCH_PERIOD


def add_config(cfg: CfgNode) -> None:
    """Add the node DISTILL.AID, with the defaults of :class:`AID`."""
    cfg.DISTILL.AID = CfgNode()
    # False distills with weight 1 everywhere.
    cfg.DISTILL.AID.ENABLED = AID.enabled
    # PAPER: the values of the authors' released code, whatever the keys below say. Empty: the keys.
    cfg.DISTILL.AID.PRESET = ""
    # Strength of the modulation exp(-alpha * D), AID eq. 1; 0.1 in the paper, without RELATIVE.
    cfg.DISTILL.AID.ALPHA = AID.alpha
    # What has a weight of its own: batch (all of it), level (the released code), image (the paper's
    # equation), instance (an object) or location.
    cfg.DISTILL.AID.GRANULARITY = AID.granularity
    # Of level and image: `native` divides the teacher's loss as the detector's own loss does;
    # `per_level` divides each level by its own number of positive anchors.
    cfg.DISTILL.AID.NORMALIZER = AID.normalizer
    # D = max(teacher's loss - student's loss, 0): what is hard for both is still distilled fully.
    # Not in the paper; for detectors of one kind. False: D is the teacher's loss.
    cfg.DISTILL.AID.RELATIVE = AID.relative
    # Add the teacher's mask loss on the box of each object to D; for Mask R-CNN, with masks to
    # compare with (MODEL.MASK_ON True). False: masks play no part.
    cfg.DISTILL.AID.MASKS = AID.masks


CONFIG_EXTENSIONS.append(add_config)


@dataclass(frozen=True)
class AID:
    """AID's weights for each batch, from what student and teacher computed on it.

    Args:
        enabled: False gives weight 1 everywhere.
        alpha: strength of the modulation, >= 0; with 0 every weight is exactly 1.
        granularity: one of GRANULARITIES.
        normalizer: of `level` and `image`, one of NORMALIZERS; see :func:`level_loss`.
        relative: D is ``max(D_teacher - D_student, 0)``.
        masks: the loss of a second stage includes that of its masks.

    Raises:
        ValueError: a value is not allowed; the key is named.
    """

    enabled: bool = True
    alpha: float = 8.0
    granularity: str = "batch"
    normalizer: str = "native"
    relative: bool = True
    masks: bool = False

    @classmethod
    def from_config(cls, node: CfgNode) -> "AID":
        """From the node DISTILL.AID.

        Raises:
            ValueError: an unknown preset, or a key that it decides has another value.
        """
        if node.PRESET and node.PRESET not in PRESETS:
            raise ValueError(
                f"DISTILL.AID.PRESET is {node.PRESET!r}; choose one of {tuple(PRESETS)}, or leave "
                "it empty."
            )
        values = {key: value for key, value in node.items() if key != "PRESET"}
        preset = PRESETS.get(node.PRESET, {})
        for key, value in preset.items():
            if values[key] not in (value, getattr(cls, key.lower())):
                raise ValueError(
                    f"DISTILL.AID.PRESET {node.PRESET} sets DISTILL.AID.{key} {value}, and "
                    f"{values[key]} is asked for. Set PRESET '', and with it all keys that you "
                    "want, or leave that key alone."
                )
        return cls(**{key.lower(): value for key, value in {**values, **preset}.items()})

    def __post_init__(self):
        for key, allowed in (("granularity", GRANULARITIES), ("normalizer", NORMALIZERS)):
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"DISTILL.AID.{key.upper()} is {getattr(self, key)!r}; choose one of {allowed}."
                )
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(
                f"DISTILL.AID.ALPHA is {self.alpha}; it has to be a finite number, 0 or more."
            )

    def __str__(self) -> str:
        if not self.enabled:
            return "off"
        flags = [name for name in ("relative", "masks") if getattr(self, name)]
        if self.normalizer != AID.normalizer:
            flags.append(self.normalizer)
        return ", ".join([self.granularity, f"alpha {self.alpha:g}", *flags])

    def suited(self, student: DetectorWrapper, teacher: DetectorWrapper) -> "AID":
        """This AID; but if it is the default and the losses of these detectors cannot be compared,
        one that is off.

        Raises:
            NotImplementedError: the losses of a detector are not known.
            ValueError: the teacher has no loss on the student's labels, or none to compare with.
        """
        if not self.enabled:
            return self
        classes = ""
        if student.num_classes not in (None, teacher.num_classes):
            own, theirs = student.num_classes, teacher.num_classes
            classes = f"the teacher has {theirs} classes and the student {own}"
        unlike = (classes or _unlike(student, teacher)) if self.relative else ""
        if unlike and self == AID():
            logger.info(
                "AID is off: by default it compares the losses of student and teacher, which "
                "cannot be compared: %s. Other AIDs go by the teacher's alone (docs/aid.md).",
                unlike,
            )
            return replace(self, enabled=False)
        teacher.check_losses()
        if classes:
            raise ValueError(
                f"{classes[0].upper()}{classes[1:]}. AID needs the teacher's loss on the student's "
                "labels: use a teacher of the same classes, or set DISTILL.AID.ENABLED False."
            )
        if unlike:
            raise ValueError(
                "DISTILL.AID.RELATIVE subtracts the student's losses from the teacher's, and needs "
                f"detectors of one kind: {unlike}. Set it False."
            )
        if self.masks:
            for wrapper in (teacher, student) if self.relative else (teacher,):
                wrapper.check_masks()
        return self

    def recorded_modules(self, student: DetectorWrapper) -> list[nn.Module]:
        """Modules of the student whose calls have to be recorded in this iteration."""
        whole = self.granularity == "batch" and self.judges()
        return student.proposal_modules if whole else []

    @property
    def needs_masks(self) -> bool:
        """Whether the masks of the ground truth are looked at."""
        return self.enabled and self.masks

    def judges(self) -> bool:
        """Whether the teacher's losses, and thus its head, are needed in this iteration."""
        if not self.enabled or self.granularity != "batch":
            return self.enabled
        return (get_event_storage().iter + 1) % BATCH_PERIOD == 0

    def __call__(
        self,
        context: DistillContext,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        objects: Objects,
        gap: Tensor,
    ) -> DistillWeights:
        """Weight the teacher's maps in this step, and log the weights.

        Args:
            context: the detectors.
            student, teacher: what they computed.
            objects: the ground truth. Images that the teacher labeled itself are not judged, since
                its loss on its own labels cannot show where it is wrong. They have the weight of
                the whole batch or level, and weight 1 where each image has its own.
            gap: (2,), the running mean of :func:`add_gap`, written to by `batch`.
        """
        if not self.enabled:
            return DistillWeights.full(teacher.features)
        whole = self.granularity == "batch"
        # PreciseBN's passes, without gradients, have iteration 0 too.
        if get_event_storage().iter == 0 and torch.is_grad_enabled():
            # That of an earlier training may have come with MODEL.WEIGHTS.
            gap.zero_()
        if not self.judges():
            weight = loss_to_weight(mean_gap(gap), self.alpha)
            return DistillWeights.constant(teacher.features, weight)
        if whole:
            objects = replace(objects, proposals=context.student.proposals(student, objects))
        losses = context.teacher.judge(teacher, objects)
        own = context.student.judge(student, objects) if self.relative else None
        weights = self.weights(losses, own, gap if whole else None)
        if self.granularity not in ("batch", "level"):
            weights = weights.with_full(objects.pseudo_labeled)
        self.log(losses, own, weights, gap)
        return weights

    def weights(
        self,
        losses: UnreducedLosses,
        student: UnreducedLosses | None = None,
        gap: Tensor | None = None,
    ) -> DistillWeights:
        """Weight maps for all levels of the teacher.

        Args:
            losses: the teacher's.
            student: the student's on the same batch and levels, if `relative`.
            gap: (2,), the running mean that D of the whole batch is added to; None: D counts alone.

        Raises:
            ValueError: the student's are missing.
        """
        if self.relative and student is None:
            raise ValueError("AID with `relative` compares with the student: give its losses too.")

        def weigh(loss: Callable[[UnreducedLosses], Tensor]) -> Tensor:
            excess = loss(losses)
            if student is not None:
                excess = excess - loss(student)
            if gap is not None:
                excess = add_gap(gap, excess)
            return loss_to_weight(excess, self.alpha)

        maps = _MAPS[self.granularity](losses, weigh, self.normalizer)
        by_stride = {x.stride: y[:, None] for x, y in zip(losses.levels, maps)}
        return DistillWeights(by_stride)

    def log(
        self,
        losses: UnreducedLosses,
        student: UnreducedLosses | None,
        weights: DistillWeights,
        gap: Tensor,
    ) -> None:
        """Put `teacher/*`, `student/*` and `aid/*` into the event storage, as often as Detectron2
        writes it; arguments as of :meth:`weights`, and those.
        """
        storage = get_event_storage()
        # Other processes have no writer, which would empty their storage.
        if (storage.iter + 1) % _LOG_PERIOD or not comm.is_main_process():
            return
        scalars = {}
        for name, x in (("teacher", losses), ("student", student)):
            if x is not None:
                scalars[f"{name}/loss_dense"] = x.dense
            if x is not None and x.roi is not None:
                scalars[f"{name}/loss_roi"] = x.second_stage
        if self.granularity == "batch":
            scalars["aid/gap"] = mean_gap(gap)
        for stride, x in weights.maps.items():
            scalars[f"aid/weight_stride{stride}"] = x.mean()
        values = torch.cat([x.flatten() for x in weights.maps.values()])
        inside = torch.cat([(x >= 0).flatten() for x in _smallest_known(losses)])
        for name, part in (("objects", values[inside]), ("background", values[~inside])):
            if len(part):
                scalars[f"aid/weight_{name}"] = part.mean()
        # A median over the last 20 of these would be one over 400 iterations.
        storage.put_scalars(**scalars, smoothing_hint=False)
        storage.put_histogram("aid/weight", values)


def _unlike(student: DetectorWrapper, teacher: DetectorWrapper) -> str:
    """Why the losses of two detectors cannot be compared; empty if they can."""
    if student.detector is not teacher.detector:
        return f"the student is a {student.name} and the teacher a {teacher.name}"
    for wrapper in (student, teacher):
        try:
            wrapper.check_losses()
        except NotImplementedError as error:
            return str(error)
    own, theirs = (
        {
            "strides": [level.stride for level in x.levels],
            "padded to a multiple of": x.model.backbone.size_divisibility,
            "box transform": getattr(x.box_transform, "__dict__", None),
            **x.loss_constants,
        }
        for x in (student, teacher)
    )
    unlike = [
        f"{what} is {own[what]} for the student and {theirs.get(what)} for the teacher"
        for what in own
        if own[what] != theirs.get(what)
    ]
    if unlike:
        return unlike[0]
    if not student.same_anchors(teacher):
        return "their anchors have other sizes, shapes or places"
    return ""


def loss_to_weight(loss: Tensor, alpha: float) -> Tensor:
    """AID's weight ``exp(-alpha * D)`` (AID eq. 1), positive and finite whatever the loss.

    Args:
        loss: D, any shape, >= 0; NaN and infinity count as a very large loss.
        alpha: >= 0; 0.1 in the paper.

    Returns:
        the same shape, float32, detached, in (0, 1].
    """
    huge = torch.finfo(torch.float32).max
    loss = loss.detach().float().nan_to_num(nan=huge, posinf=huge).clamp(min=0)
    return torch.exp(-(alpha * loss).clamp(max=_MAX_EXPONENT))


def add_gap(gap: Tensor, excess: Tensor) -> Tensor:
    """Add D of a batch to its running mean, and return the mean.

    Args:
        gap: (2,), written to: the sum of all D by weights that fall by GAP_MOMENTUM, and the sum of
            these weights. Zeros before the first D.
        excess: D, (); NaN and infinity count as a very large one.
    """
    excess = excess.detach().float().nan_to_num(nan=_MAX_GAP).clamp(-_MAX_GAP, _MAX_GAP)
    gap.lerp_(torch.stack([excess, torch.ones_like(excess)]), 1 - GAP_MOMENTUM)
    return mean_gap(gap)


def mean_gap(gap: Tensor) -> Tensor:
    """() the running mean of :func:`add_gap`; 0 before the first D."""
    return gap[0] / gap[1].clamp(min=1 - GAP_MOMENTUM)


def batch_loss(losses: UnreducedLosses) -> Tensor:
    """A detector's loss on the whole batch.

    Of a one-stage detector it is cls + box over the number of positive anchors. For RetinaNet and
    FCOS this is their own loss. GFL's own has soft labels and is small for a detector that finds
    nothing, so that cls has hard ones here. Of a two-stage detector it is the RPN's own, plus that
    of the second stage on proposals; without proposals, its mean on objects.

    Sums and divisors are those of all GPUs; without a positive anchor it is 0. Images that the
    teacher labeled itself are left out, since its loss on them says nothing; where there are no
    others, they count.

    Returns:
        ()
    """
    if losses.roi is None:
        sums, counts = (losses.cls + losses.box).sum(1), (losses.matched_idxs >= 0).sum(1)
    else:
        sums, counts = losses.anchor_losses.sum(1), losses.image_normalizer
    parts = [_of_labeled(losses, sums), _of_labeled(losses, counts.float())]
    if losses.roi is not None:
        parts += _labeled_roi(losses)
    of_all = mean_over_gpus(torch.stack(parts)).unflatten(0, (-1, 2))
    loss = torch.where(of_all[:, 1] > 0, of_all[:, 0] / of_all[:, 1], 0.0).sum()
    return loss if losses.proposals is None else loss + mean_over_gpus(losses.proposals)


def level_loss(losses: UnreducedLosses, normalizer: str = "native") -> Tensor:
    """A detector's loss on each level, over the images that the teacher did not label itself.

    With `native` normalization the levels add up to the detector's own dense loss, so that a level
    without objects has a small loss and nearly full weight. With `per_level` each level is divided
    by its own number of positive anchors. The mean loss of a second stage is added to each level.

    Returns:
        (L,)
    """
    sums, positives = _level_sums(losses)
    if normalizer != "native":
        divisor = _of_labeled(losses, positives).clamp(min=1)
    elif len(losses.objects.labeled_images) == len(losses.cls):
        divisor = losses.batch_normalizer
    else:
        divisor = _of_labeled(losses, losses.image_normalizer)
    total = _of_labeled(losses, sums) / divisor
    if losses.roi is not None:
        loss, count = _labeled_roi(losses)
        total = total + loss / count.clamp(min=1)
    return total


def image_loss(losses: UnreducedLosses, normalizer: str = "native") -> Tensor:
    """As :func:`level_loss`, for each image by itself.

    Returns:
        (N, L)
    """
    sums, positives = _level_sums(losses)
    native = losses.image_normalizer[:, None]
    total = sums / (native if normalizer == "native" else positives.clamp(min=1))
    if losses.roi is not None:
        roi = sums.new_zeros(len(sums)).index_add_(0, losses.objects.image_index, losses.roi)
        total = total + (roi / losses.objects.counts_on_device.clamp(min=1))[:, None]
    return total


def object_loss(losses: UnreducedLosses) -> Tensor:
    """A detector's loss on each object: cls + box, the mean over the object's positive anchors,
    plus the loss of a second stage.

    Returns:
        (M,); see `known_objects` for where it says something.
    """
    loss = losses.sum_by_object(losses.cls + losses.box) / losses.num_positives.clamp(min=1)
    return loss if losses.roi is None else loss + losses.roi


def location_loss(losses: UnreducedLosses) -> list[Tensor]:
    """A detector's loss at each location: cls + box, the mean over its positive anchors; without
    one, the sum of cls. A second stage adds its loss on the smallest object there.

    Returns:
        per level (N, H, W)
    """
    maps = []
    for cls, box, matched_idxs in zip(
        *map(losses.split, (losses.cls, losses.box, losses.matched_idxs))
    ):
        positive = matched_idxs >= 0
        count = positive.sum(-1)
        mean = ((cls + box) * positive).sum(-1) / count.clamp(min=1)
        maps.append(torch.where(count > 0, mean, cls.sum(-1)))
    if losses.roi is None:
        return maps
    shown = smallest_objects(losses.objects, losses.levels)
    return [x + _gather_or(losses.roi, index, 0.0) for x, index in zip(maps, shown)]


def _of_labeled(losses: UnreducedLosses, by_image: Tensor) -> Tensor:
    """The sum of (N, ...) over the images that the teacher did not label itself, (...)."""
    # Image by image: indexing with a list would copy it to the device, which waits.
    return torch.stack([by_image[i] for i in losses.objects.labeled_images]).sum(0)


def _labeled_roi(losses: UnreducedLosses) -> tuple[Tensor, Tensor]:
    """() sum of the second stage's losses on these images' objects, and () their number."""
    objects = losses.objects
    by_image = losses.roi.new_zeros(len(losses.cls)).index_add_(0, objects.image_index, losses.roi)
    counts = objects.counts_on_device.to(losses.roi)
    return _of_labeled(losses, by_image), _of_labeled(losses, counts)


def _level_sums(losses: UnreducedLosses) -> tuple[Tensor, Tensor]:
    """(N, L) sum of the anchors' losses, and number of positive anchors."""
    values = losses.split(losses.anchor_losses)
    matched_idxs = losses.split(losses.matched_idxs)
    return (
        torch.stack([x.flatten(1).sum(1) for x in values], dim=1),
        torch.stack([(x >= 0).flatten(1).sum(1) for x in matched_idxs], dim=1),
    )


def _constant_maps(weights: Tensor, levels: list[LevelShape]) -> list[Tensor]:
    return [
        weights[:, i, None, None].expand(-1, level.height, level.width)
        for i, level in enumerate(levels)
    ]


def _batch_maps(losses: UnreducedLosses, weigh, normalizer: str) -> list[Tensor]:
    weight = weigh(batch_loss)
    return _constant_maps(weight.expand(len(losses.cls), len(losses.levels)), losses.levels)


def _level_maps(losses: UnreducedLosses, weigh, normalizer: str) -> list[Tensor]:
    weights = weigh(lambda x: level_loss(x, normalizer))
    return _constant_maps(weights[None].expand(len(losses.cls), -1), losses.levels)


def _image_maps(losses: UnreducedLosses, weigh, normalizer: str) -> list[Tensor]:
    return _constant_maps(weigh(lambda x: image_loss(x, normalizer)), losses.levels)


def _instance_maps(losses: UnreducedLosses, weigh, normalizer: str) -> list[Tensor]:
    """The weights (M,) of objects in their boxes, over those (N, L) of the background."""
    of_objects, of_background = weigh(object_loss), weigh(lambda x: x.background)
    return [
        torch.where(x >= 0, _gather_or(of_objects, x, 0.0), of_background[:, i, None, None])
        for i, x in enumerate(_smallest_known(losses))
    ]


def _location_maps(losses: UnreducedLosses, weigh, normalizer: str) -> list[Tensor]:
    shapes = [(x.height, x.width) for x in losses.levels]
    flat = weigh(lambda x: torch.cat([y.flatten(1) for y in location_loss(x)], dim=1))
    parts = flat.split([height * width for height, width in shapes], dim=1)
    return [x.unflatten(1, shape) for x, shape in zip(parts, shapes)]


# Per level the weights (N, H, W) of each granularity.
_MAPS = {
    "batch": _batch_maps,
    "level": _level_maps,
    "image": _image_maps,
    "instance": _instance_maps,
    "location": _location_maps,
}


def _smallest_known(losses: UnreducedLosses) -> list[Tensor]:
    """Per level the smallest object of each cell, of those that there is a loss on."""
    return smallest_objects(losses.objects, losses.levels, losses.known_objects)


def _gather_or(values: Tensor, index: Tensor, default: float) -> Tensor:
    """values[index], or default where the index is -1."""
    return torch.cat([values, values.new_full((1,), default)])[index]
