"""A detector seen through the one interface that distillation needs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.structures import ImageList, Instances
from detectron2.utils.registry import Registry

from ...layers.iou import giou_loss
from ...structures import (
    Call,
    DensePredictions,
    DetectorOutputs,
    Level,
    Objects,
    UnreducedLosses,
)
from ..modes import evaluating

WRAPPER_REGISTRY = Registry("DETECTOR_WRAPPER")
WRAPPER_REGISTRY.__doc__ = "Subclasses of DetectorWrapper; `wrap` finds the one for a detector."


class DetectorWrapper:
    """Runs a detector, student or teacher, and gives what distillation needs of it.

    This class itself serves any meta-architecture with a `backbone` that returns a dict of maps,
    for methods that use features alone. A subclass adds the detector's dense head and its losses.

    Args:
        model: the detector.
        input_format: channel order that it was trained with, such as `BGR`.

    Attributes:
        dtype: bfloat16 to run :meth:`forward_features` under autocast.
        detector: the meta-architecture that the wrapper serves.
        two_stage: which of the published constants of a method apply.
        ignoring_parts: by config key the registered parts that leave ignore regions out of the
            detector's loss, by the name of the part that they replace; None where there are none.
        mimic_cls_weight, mimic_box_weight: CrossKD's factors on the class and box losses.
        mimic_by_confidence: whether CrossKD divides that loss by the sum of the teacher's scores.
        box_bins: bins of the distribution of a box side; None for boxes of four numbers.
    """

    detector: type[nn.Module] = nn.Module
    two_stage = False
    ignoring_parts: dict[str, dict[str, str]] | None = None
    mimic_cls_weight = 1.0
    mimic_box_weight = 1.0
    mimic_by_confidence = False
    box_bins: int | None = None

    def __init__(self, model: nn.Module, input_format: str = "BGR"):
        self.model = model
        self.input_format = input_format
        self.dtype = torch.float32

    # What it runs.

    def forward_training(
        self, batched_inputs: list[dict], recorded: Sequence[nn.Module] = ()
    ) -> tuple[DetectorOutputs, dict[str, Tensor]]:
        """Run the detector's own, unmodified training step.

        Args:
            batched_inputs: as Detectron2's mapper makes them.
            recorded: modules whose calls the outputs are to tell of.

        Returns:
            what it computed, and its losses.
        """
        own = [x for x in (self.model.backbone, self.head) if x is not None]
        with record_calls([*own, *recorded]) as calls:
            losses = self.model(batched_inputs)
        features = self.features(calls[self.model.backbone][-1].output)
        head_outputs = calls[self.head][-1].output if self.head is not None else None
        return DetectorOutputs(features, head_outputs, calls), losses

    @torch.no_grad()
    def forward_features(
        self,
        batched_inputs: list[dict],
        input_format: str,
        with_head: bool,
        recorded: Sequence[nn.Module] = (),
    ) -> DetectorOutputs:
        """Run the backbone and, if asked, the dense head once: no proposals, no sampling, no NMS.

        Args:
            batched_inputs: as Detectron2's mapper makes them.
            input_format: channel order of their images.
            with_head: whether the head's outputs are wanted.
            recorded: modules whose calls the outputs are to tell of.
        """
        if input_format != self.input_format:
            order = [input_format.index(channel) for channel in self.input_format]
            batched_inputs = [{**x, "image": x["image"][order]} for x in batched_inputs]
        images = self.images(batched_inputs)
        # Whatever the student trains in.
        with self.autocast(), record_calls(recorded) as calls:
            outputs = DetectorOutputs(self.features(self.model.backbone(images)), calls=calls)
            if with_head and self.head is not None:
                outputs.head_outputs = self.head(list(outputs.features.values()))
        return outputs

    def images(self, batched_inputs: list[dict]) -> Tensor:
        """(N, 3, H, W) normalized and padded, as the detector does it itself.

        Raises:
            ValueError: it would see a part of an image alone.
        """
        if hasattr(self.model, "preprocess_image"):
            images = self.model.preprocess_image(batched_inputs)
            images = images[0] if isinstance(images, tuple) else images  # Sparse R-CNN
        else:  # ProposalNetwork, SemanticSegmentor
            model = self.model
            pixels = [x["image"].to(model.pixel_mean.device) for x in batched_inputs]
            pixels = [(x - model.pixel_mean) / model.pixel_std for x in pixels]
            images = ImageList.from_tensors(pixels, model.backbone.size_divisibility)
        height, width = images.tensor.shape[-2:]
        largest = [max(x["image"].shape[dim] for x in batched_inputs) for dim in (-2, -1)]
        if largest[0] > height or largest[1] > width:
            raise ValueError(
                f"A {self.name} pads images to {height} x {width}, and an image is {largest[0]} x "
                f"{largest[1]}: it would see a part of it alone. Set INPUT.MIN_SIZE_TRAIN and "
                "MAX_SIZE_TRAIN so that images fit."
            )
        return images.tensor

    def autocast(self, supported: bool = True) -> torch.autocast:
        """Autocast to the type that it runs in, or none if that is not supported."""
        device = next(self.model.parameters()).device
        enabled = supported and self.dtype is torch.bfloat16
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)

    # What it has.

    @classmethod
    def serves(cls, model: nn.Module) -> bool:
        """Whether an instance of its meta-architecture is made of parts that it knows."""
        return True

    @property
    def name(self) -> str:
        """Of the detector, with the parts that it is made of, for messages."""
        parts = (getattr(self.model, x, None) for x in ("proposal_generator", "roi_heads"))
        named = " and ".join(type(part).__name__ for part in parts if part is not None)
        return type(self.model).__name__ + (f" with {named}" if named else "")

    @property
    def in_features(self) -> list[str]:
        """Names of the maps that the detector's head looks at, finest first."""
        shapes = self.model.backbone.output_shape()
        return sorted(shapes, key=lambda name: shapes[name].stride)

    @property
    def levels(self) -> list[Level]:
        """The maps that the detector's head looks at, finest first."""
        backbone = self.model.backbone
        shapes = backbone.output_shape()
        top_block = getattr(backbone, "top_block", None)
        # A top block adds the last, coarsest maps.
        lateral = len(shapes) - getattr(top_block, "num_levels", 0)
        levels = []
        for position, (name, shape) in enumerate(shapes.items()):
            origin = ("backbone",)
            if position >= lateral:
                origin = (type(top_block).__name__, top_block.in_feature)
            if name in self.in_features:
                levels.append(Level(name, shape.stride, shape.channels, origin))
        return sorted(levels, key=lambda level: level.stride)

    @property
    def num_classes(self) -> int | None:
        """Number of object classes; None where unknown."""
        return None

    @property
    def head(self) -> nn.Module | None:
        """The dense head, called once with the list of maps; None where there is none."""
        return None

    @property
    def anchor_generator(self) -> Any:
        """Of the dense head; None where there is none."""
        return None

    @property
    def box_transform(self):
        """Of the dense head, with `apply_deltas` and `get_deltas`; None where there is none."""
        return None

    @property
    def towers(self) -> dict[str, nn.Sequential]:
        """The convolutions before the predictors of the dense head, `cls` and `box`, with each
        activation a module of its own; empty where there are none.
        """
        return {}

    @property
    def box_head_lacks(self) -> str | None:
        """What keeps :meth:`score` from being a softmax over the classes; None if nothing does."""
        return f"a box head, which a {self.name} does not have"

    # What it gives.

    def features(self, maps: dict[str, Tensor]) -> dict[int, Tensor]:
        """What the head looks at of the backbone's output, per stride, finest first."""
        return {level.stride: maps[level.name] for level in self.levels}

    def predictions(self, features: dict[int, Tensor], head_outputs) -> DensePredictions:
        """The dense predictions in the form that all wrappers share.

        Args:
            features: maps (N, C, H, W) per stride, finest first.
            head_outputs: what `head` returned for them, or for maps that padding made larger.

        Raises:
            NotImplementedError: there is no wrapper for this detector.
        """
        raise NotImplementedError(
            f"Nothing is known of the predictions of a {self.name}, only of those "
            f"of {known_detectors()}. Register a DetectorWrapper for it."
        )

    def predict(self, towers: dict[str, list[Tensor]]):
        """The dense head's outputs, as `head` returns them, from the output of its `towers`."""
        raise NotImplementedError

    def score(self, features: dict[int, Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The box head of a two-stage detector on given boxes, in the precision of the maps.

        Args:
            features: maps (N, C, H, W) per stride, at least those that the box head looks at.
            boxes: of each image (B_i, 4).

        Returns:
            class logits (sum of B_i, K+1), the background last, and box deltas, float32.
        """
        raise NotImplementedError

    def box_distance(self, student: DensePredictions, teacher: DensePredictions) -> Tensor:
        """(N, R) CrossKD's distance of the boxes of two detectors of this kind."""
        return giou_loss(student.boxes, teacher.boxes)

    def matched_idxs(self, predictions: DensePredictions, objects: Objects) -> Tensor:
        """The detector's own assignment of its anchors to objects, without sampling.

        Args:
            predictions: whose levels and anchors are looked at.
            objects: ground truth of N images.

        Returns:
            (N, R) int64: index into objects.boxes, BACKGROUND or IGNORED.
        """
        raise NotImplementedError

    # What AID asks of it.

    @property
    def proposal_modules(self) -> list[nn.Module]:
        """Modules whose recorded calls tell the proposals that a second stage is trained on."""
        return []

    def proposals(self, outputs: DetectorOutputs, objects: Objects) -> list[list[Instances]] | None:
        """For `Objects.proposals`: a sample of those that the second stage was trained on in this
        step, labeled as it labels them; None where `proposal_modules` are not recorded.
        """
        return None

    def same_anchors(self, other: "DetectorWrapper") -> bool:
        """Whether another detector has the same anchors at each location of each level."""
        ours, theirs = self.anchor_generator, other.anchor_generator
        if ours is None or theirs is None:
            return ours is theirs
        # The detectors may be on two devices until the first step.
        cells = [[x.cpu() for x in y.cell_anchors] for y in (ours, theirs)]
        same = len(cells[0]) == len(cells[1]) and all(map(torch.equal, *cells))
        return same and ours.offset == theirs.offset

    @property
    def loss_constants(self) -> dict[str, Any]:
        """What the detector's losses depend on besides predictions and objects, by name."""
        return {}

    def check_losses(self) -> None:
        """
        Raises:
            NotImplementedError: AID does not know the losses of this detector.
        """
        if type(self).unreduced_losses is DetectorWrapper.unreduced_losses:
            raise NotImplementedError(
                f"AID does not know the losses of a {self.name}. It knows "
                f"{known_detectors()}; for others set DISTILL.AID.ENABLED False, or register a "
                "DetectorWrapper."
            )

    def check_masks(self) -> None:
        """
        Raises:
            NotImplementedError: AID does not know a loss of its masks.
        """
        raise NotImplementedError(
            "DISTILL.AID.MASKS needs a Mask R-CNN with Detectron2's own mask head and "
            f"MODEL.MASK_ON True, and this is a {self.name}. Set it False."
        )

    def unreduced_losses(
        self, features: dict[int, Tensor], head_outputs, objects: Objects
    ) -> UnreducedLosses:
        """The detector's losses on a batch, unreduced, with the detector in eval mode.

        Args:
            features: maps (N, C, H, W) per stride, finest first.
            head_outputs: what `head` returned for them.
            objects: the ground truth.

        Raises:
            NotImplementedError: see :meth:`check_losses`.
        """
        self.check_losses()
        raise NotImplementedError

    @torch.no_grad()
    def judge(self, outputs: DetectorOutputs, objects: Objects) -> UnreducedLosses:
        """The detector's unreduced losses on what it computed, without gradient."""
        # In eval mode, lest what is computed again moves the statistics of a batch norm.
        with evaluating(self.model):
            return self.unreduced_losses(outputs.features, outputs.head_outputs, objects)


def wrap(model: nn.Module, input_format: str = "BGR") -> DetectorWrapper:
    """Wrap a detector in the wrapper registered for it, that for its nearest base class, or the
    general one that knows features alone.

    Raises:
        ValueError: the model has no backbone that describes its maps, or nothing that makes images
            its input.
    """
    name = type(model).__name__
    if not hasattr(getattr(model, "backbone", None), "output_shape"):
        raise ValueError(f"{name} has no Detectron2 backbone, and distillation needs its maps.")
    if not hasattr(model, "preprocess_image") and not hasattr(model, "pixel_mean"):
        raise ValueError(
            f"{name} has neither a method `preprocess_image` nor the buffers `pixel_mean` and "
            "`pixel_std`, and distillation has to make its input. Give it the method, as "
            "Detectron2's meta-architectures have it."
        )
    wrapper = wrapper_class(type(model))
    return (wrapper if wrapper.serves(model) else DetectorWrapper)(model, input_format)


def wrapper_class(detector: type[nn.Module]) -> type[DetectorWrapper]:
    """The class that :func:`wrap` takes for a meta-architecture."""
    wrappers = {wrapper.detector: wrapper for _, wrapper in WRAPPER_REGISTRY}
    return next((wrappers[x] for x in detector.__mro__ if x in wrappers), DetectorWrapper)


def known_detectors() -> str:
    return ", ".join(wrapper.detector.__name__ for _, wrapper in WRAPPER_REGISTRY)


@contextmanager
def record_calls(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[Call]]]:
    """While open, keep every call of the modules.

    Yields:
        dict, filled when the modules run. The hooks are gone afterwards.
    """
    calls: dict[nn.Module, list[Call]] = {module: [] for module in modules}

    def keep(module: nn.Module, inputs: tuple, output: Any) -> None:
        calls[module].append(Call(inputs, output))

    handles = [module.register_forward_hook(keep) for module in calls]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
