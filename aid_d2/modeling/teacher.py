"""The teacher: a trained detector that is frozen and belongs to no other module."""

import logging
import os
from collections.abc import Sequence

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from ..config import find_config, load_config, plain_student
from .lazy import build_lazy, is_lazy
from .modes import unwrapped
from .precision import PRECISIONS, choose_precision, compile_backbone, fold_norms
from .safe_pickle import SafeCheckpointer
from .wrappers import wrap

logger = logging.getLogger(__name__)

# Checkpoints of a distilled student carry its adapters under this prefix.
DISTILLER_PREFIX = "distiller."


class Teacher:
    """A frozen detector in eval mode.

    It is no ``nn.Module``, so that as an attribute of one it stays out of its parameters, train
    mode, optimizer, DDP buckets and checkpoints.

    Args:
        model: the trained detector, with a `backbone` and `preprocess_image` as Detectron2's
            meta-architectures have them.
        input_format: channel order the detector was trained with, such as `BGR`.
        class_names: of its classes in order, None if they are not known.
    """

    def __init__(
        self, model: nn.Module, input_format: str, class_names: Sequence[str] | None = None
    ):
        self.model = model.eval().requires_grad_(False)
        self.class_names = class_names
        self.wrapper = wrap(model, input_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Teacher":
        """Build and load what DISTILL.TEACHER names, on the device of the student.

        Raises:
            ValueError: a key is empty, or parameters are missing, left over or of other shape.
            FileNotFoundError: a file does not exist.
        """
        config_file, weights = (_existing_file(cfg, key) for key in ("CONFIG_FILE", "WEIGHTS"))
        if is_lazy(config_file):
            return cls.load_lazy(config_file, weights, cfg.MODEL.DEVICE)
        teacher_cfg = load_teacher_config(cfg)
        teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
        return cls.load(teacher_cfg, weights)

    @classmethod
    def load_lazy(cls, config_file: str, weights: str, device: str) -> "Teacher":
        """Build and load a detector of a LazyConfig, a `.py` or the yaml that it saves.

        Raises:
            ValueError: the file has no `model`; or parameters are missing, left over or of other
                shape.
        """
        model, input_format, names = build_lazy(config_file, device)
        saved = _StrictCheckpointer(model).load(weights).get("class_names")
        return cls(model, input_format, saved or names)

    @classmethod
    def load(cls, cfg: CfgNode, weights: str) -> "Teacher":
        """As :func:`load_detector`, whose arguments it takes."""
        model, names = load_detector(cfg, weights)
        return cls(model, cfg.INPUT.FORMAT, names)

    def speed_up(self, precision: str, compiled: bool = False) -> None:
        """Make the forward pass cheap, see :func:`fold_norms`, unless it is to be float32.

        Args:
            precision: one of PRECISIONS.
            compiled: whether to compile the backbone.

        Raises:
            ValueError: unknown precision, or one that the teacher cannot compute in.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"DISTILL.PRECISION is {precision!r}; choose one of {PRECISIONS}.")
        if any(isinstance(x, (DeformConv, ModulatedDeformConv)) for x in self.model.modules()):
            if precision == "bfloat16":
                raise ValueError(
                    "DISTILL.PRECISION is bfloat16, and Detectron2's deformable convolutions, "
                    "which the teacher has, do not compute in it: set it auto or float32."
                )
            precision = "float32"
        device = next(self.model.parameters()).device
        self.wrapper.dtype = choose_precision(precision, device)
        if self.wrapper.dtype is torch.bfloat16:
            fold_norms(self.model)
        if compiled:
            compile_backbone(self.model)
        logger.info(f"The teacher runs in {self.wrapper.dtype}.")


def load_detector(cfg: CfgNode, weights: str) -> tuple[nn.Module, Sequence[str] | None]:
    """Build and load a detector.

    Args:
        cfg: of the detector itself.
        weights: its checkpoint.

    Returns:
        the detector; and its classes in order, None if they are not known.

    Raises:
        ValueError: parameters are missing, left over or of other shape.
    """
    cfg = cfg.clone()
    cfg.defrost()
    # Networks of timm then look for no ImageNet weights.
    cfg.MODEL.WEIGHTS = weights
    model = build_model(cfg)
    names = _StrictCheckpointer(model).load(weights).get("class_names")
    if names is None and cfg.DATASETS.TRAIN:
        names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    return model, names


def teacher_of(model: nn.Module) -> Teacher | None:
    """That of a distilled detector, also under DistributedDataParallel; None of a plain one."""
    teacher = getattr(unwrapped(model), "teacher", None)
    return teacher if isinstance(teacher, Teacher) else None


def load_teacher_config(cfg: CfgNode) -> CfgNode:
    """The config that DISTILL.TEACHER.CONFIG_FILE names. Of a distilled detector only the student
    is taken.

    Raises:
        ValueError: the key is empty, or the file is a LazyConfig.
        FileNotFoundError: the file does not exist.
    """
    path = _existing_file(cfg, "CONFIG_FILE")
    if is_lazy(path):
        raise ValueError(
            f"DISTILL.TEACHER.CONFIG_FILE {path} is a LazyConfig, which can teach, but what was "
            "asked for needs a yaml of Detectron2's older kind."
        )
    return plain_student(load_config(path))


class _StrictCheckpointer(SafeCheckpointer):
    """Refuses a file that does not fit the model, instead of logging it."""

    def _log_incompatible_keys(self, incompatible):
        # Older files hold buffers, such as pixel_mean, that now come from the config.
        harmless = {name for name, _ in self.model.named_buffers()}
        misshapen = {key for key, _, _ in incompatible.incorrect_shapes}
        wrong = {
            "missing": [key for key in incompatible.missing_keys if key not in misshapen],
            "left over": [
                key
                for key in incompatible.unexpected_keys
                if not key.startswith(DISTILLER_PREFIX) and key not in harmless
            ],
            "of other shape": [
                f"{key} (file {tuple(found)}, model {tuple(wanted)})"
                for key, found, wanted in incompatible.incorrect_shapes
            ],
        }
        problems = [f"{len(keys)} {what}: {_first(keys)}" for what, keys in wrong.items() if keys]
        if problems:
            raise ValueError(
                f"The weights {self._path} (--weights, DISTILL.TEACHER.WEIGHTS) do not fit the "
                "detector's config. Parameters " + "; ".join(problems)
            )


def _first(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")


def _existing_file(cfg: CfgNode, key: str) -> str:
    """Local path of the file that DISTILL.TEACHER.<key> names."""
    name = f"DISTILL.TEACHER.{key}"
    value = cfg.DISTILL.TEACHER[key]
    remedy = (
        "A teacher is a trained detector: set both DISTILL.TEACHER.CONFIG_FILE (its yaml, or the "
        "config.yaml in its OUTPUT_DIR) and DISTILL.TEACHER.WEIGHTS (its model_final.pth), or set "
        "DISTILL.ENABLED False to train or evaluate the student alone."
    )
    if not value:
        raise ValueError(f"{name} is empty. {remedy}")
    try:
        path = find_config(value) if key == "CONFIG_FILE" else PathManager.get_local_path(value)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error} {remedy}") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name}: there is no file {value!r}. {remedy}")
    return path
