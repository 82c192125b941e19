"""What aid_d2 has to know of a kind of detector, in one interface."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from detectron2.structures import Boxes, Instances
from detectron2.utils.registry import Registry

from ...losses import IGNORED, LevelShape, Objects, UnreducedLosses
from ..dense_predictions import DensePredictions
from ..levels import Level
from .assignment import Labels, gather_matched
from .dense import dense_predictions

WRAPPER_REGISTRY = Registry("DETECTOR_WRAPPER")
WRAPPER_REGISTRY.__doc__ = "Subclasses of DetectorWrapper; `wrap` finds the one for a detector."


class DetectorWrapper:
    """A detector seen through the one interface that distillation needs.

    This class itself serves any meta-architecture with a `backbone` that returns a dict of maps,
    for methods that use features alone. A wrapper adds the detector's dense head and its losses.

    Args:
        model: the detector.

    Attributes:
        detector: the meta-architecture that the wrapper serves.
        two_stage: which of the published constants of a method apply.
    """

    detector: type[nn.Module] = nn.Module
    two_stage = False

    def __init__(self, model: nn.Module):
        self.model = model

    @property
    def in_features(self) -> list[str]:
        """Names of the maps that the detector's head looks at, finest first."""
        shapes = self.model.backbone.output_shape()
        return sorted(shapes, key=lambda name: shapes[name].stride)

    @property
    def num_classes(self) -> int | None:
        """Number of object classes; None where unknown."""
        return None

    @property
    def head(self) -> nn.Module | None:
        """The dense head, called once with the list of maps; None where there is none."""
        return None

    @property
    def levels(self) -> list[Level]:
        shapes = self.model.backbone.output_shape()
        top_block = getattr(self.model.backbone, "top_block", None)
        lateral = len(getattr(self.model.backbone, "in_features", shapes))
        levels = []
        for position, (name, shape) in enumerate(shapes.items()):
            origin = ("backbone",)
            if top_block is not None and position >= lateral:
                origin = (type(top_block).__name__, top_block.in_feature)
            if name in self.in_features:
                levels.append(Level(name, shape.stride, shape.channels, origin))
        return sorted(levels, key=lambda level: level.stride)

    @property
    def anchor_generator(self) -> nn.Module | None:
        """Of the dense head; None where there is none."""
        return None

    @property
    def box_transform(self):
        """Of the dense head, with `apply_deltas` and `get_deltas`; None where there is none."""
        return None

    @property
    def loss_modules(self) -> list[nn.Module]:
        """The modules that hold the constants of the detector's losses."""
        return [self.model]

    @property
    def towers(self) -> dict[str, nn.Sequential]:
        """The convolutions before the predictors of the dense head, `cls` and `box`, with each
        activation a module of its own; empty where there are none.
        """
        return {}

    def features(self, maps: dict[str, Tensor]) -> dict[int, Tensor]:
        """What the head looks at of the backbone's output, per stride, finest first."""
        return {level.stride: maps[level.name] for level in self.levels}

    def predictions(self, features: dict[int, Tensor], head_outputs) -> DensePredictions:
        """The dense predictions in the form that all wrappers share.

        Args:
            features: maps (N, C, H, W) per stride, finest first.
            head_outputs: what `head` returned for them, or for maps that padding made larger.

        Raises:
            NotImplementedError: the detector is of no wrapper that is known.
        """
        raise NotImplementedError(
            f"Nothing is known of the predictions of a {type(self.model).__name__}, only of those "
            f"of {_known_detectors()}. Register a DetectorWrapper for it."
        )

    @property
    def assignment(self) -> Hashable:
        """The rule that anchors are assigned to objects by. Equal rules share the result."""
        return self.model

    def assign(self, levels: list[LevelShape], anchors: Tensor, objects: Objects) -> Tensor:
        """The detector's own assignment of its anchors to objects, without sampling.

        Args:
            levels: finest first.
            anchors: (R, 4) of an image, level after level.
            objects: ground truth of N images.

        Returns:
            (N, R) int64: index into objects.boxes, BACKGROUND or IGNORED.
        """
        raise NotImplementedError

    def matched_idxs(self, predictions: DensePredictions, objects: Objects) -> Tensor:
        """As :meth:`assign`, but computed once for these objects and kept with them."""
        return self._matched_idxs(predictions.levels, predictions.anchors, objects)

    def _matched_idxs(self, levels: list[LevelShape], anchors: Tensor, objects: Objects) -> Tensor:
        key = (self.assignment, *levels)
        if key not in objects.assignments:
            objects.assignments[key] = self.assign(levels, anchors, objects)
        return objects.assignments[key]

    @property
    def labeller(self) -> tuple[nn.Module, Callable] | None:
        """What labels anchors for the detector's loss: the part of it, and the method as its class
        defines it. None where :meth:`labels` would not say the same.
        """
        return None

    def labels(self, matched_idxs: Tensor, anchors: Tensor, objects: Objects) -> Labels:
        """What the labeller returns for images with these matched_idxs (N, R) of anchors (R, 4)."""
        raise NotImplementedError

    @contextmanager
    def sharing_matches(
        self, features: Callable[[], dict[int, Tensor]], objects: Objects
    ) -> Iterator[None]:
        """While open, the detector's own loss labels anchors by the assignment that all others use.

        It labels them itself where another labeller has been put in its place (also by
        `mask_ignore_regions`), and where it is given other numbers of objects than there are.

        Args:
            features: returns the maps of the forward pass that the labels are for.
            objects: its ground truth.
        """
        module, method = self.labeller or (None, None)
        name = getattr(method, "__name__", "")
        if method is None or getattr(module, name, None) != method.__get__(module):
            yield
            return

        @torch.no_grad()
        def label(anchors: list[Boxes], gt_instances: list[Instances]) -> Labels:
            if [len(x) for x in gt_instances] != objects.counts:
                return method(module, anchors, gt_instances)
            anchors = Boxes.cat(anchors).tensor
            per_location = self.anchor_generator.num_cell_anchors
            levels = [
                LevelShape(stride, *x.shape[-2:], count)
                for (stride, x), count in zip(features().items(), per_location)
            ]
            return self.labels(self._matched_idxs(levels, anchors, objects), anchors, objects)

        setattr(module, name, label)
        try:
            yield
        finally:
            delattr(module, name)

    def predict(self, towers: dict[str, list[Tensor]]):
        """The dense head's predictions, as `head` returns them, from the output of its `towers`."""
        raise NotImplementedError

    def check_losses(self) -> None:
        """
        Raises:
            NotImplementedError: AID does not know the losses of this detector.
        """
        if type(self).unreduced_losses is DetectorWrapper.unreduced_losses:
            raise NotImplementedError(
                f"AID does not know the losses of a {type(self.model).__name__}. It knows "
                f"{_known_detectors()}; for others set DISTILL.AID.ENABLED False, or register a "
                "DetectorWrapper."
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


class DenseWrapper(DetectorWrapper):
    """A wrapper on Detectron2's `DenseDetector`.

    Attributes:
        regression_values: outputs of the box regression for an anchor.
    """

    regression_values = 4

    @property
    def in_features(self):
        return list(self.model.head_in_features)

    @property
    def num_classes(self):
        return self.model.num_classes

    @property
    def head(self):
        return self.model.head

    @property
    def anchor_generator(self):
        return self.model.anchor_generator

    @property
    def box_transform(self):
        return self.model.box2box_transform

    @property
    def towers(self):
        # Those of Detectron2's RetinaNetHead.
        return {"cls": self.head.cls_subnet, "box": self.head.bbox_subnet}

    def class_labels(self, matched_idxs: Tensor, objects: Objects) -> Tensor:
        """(N, R) class of each anchor's object; K for background, -1 for ignored."""
        no_class = torch.where(matched_idxs == IGNORED, -1, self.num_classes)
        return gather_matched(objects.classes, matched_idxs, no_class)

    def labels(self, matched_idxs, anchors, objects):
        boxes = gather_matched(objects.boxes, matched_idxs, anchors)
        return list(self.class_labels(matched_idxs, objects)), list(boxes)

    def predictions(self, features, head_outputs):
        return dense_predictions(
            self.anchor_generator,
            self.box_transform,
            features,
            head_outputs,
            self.num_classes,
            self.regression_values,
        )


def wrap(model: nn.Module) -> DetectorWrapper:
    """The registered wrapper of a detector, that of its nearest base class, or the general one that
    knows features alone.

    Raises:
        ValueError: the model has no backbone that describes its maps.
    """
    wrappers = {wrapper.detector: wrapper for _, wrapper in WRAPPER_REGISTRY}
    for base in type(model).__mro__:
        if base in wrappers:
            return wrappers[base](model)
    if not hasattr(getattr(model, "backbone", None), "output_shape"):
        raise ValueError(
            f"{type(model).__name__} has no Detectron2 backbone, and distillation needs its maps."
        )
    return DetectorWrapper(model)


def _known_detectors() -> str:
    return ", ".join(wrapper.detector.__name__ for _, wrapper in WRAPPER_REGISTRY)
