"""The keys that aid_d2 adds to a Detectron2 config, and how a config is loaded.

Each module adds the keys of what it defines to CONFIG_EXTENSIONS as it is imported; this one
imports none of them.
"""

import importlib
import os
from collections.abc import Callable, Sequence

import torch
import yaml

from detectron2 import model_zoo
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

from .config_node import Config, get_config_file

# The meta-architecture of this project.
DISTILLED = "DistilledDetector"


def _add_keys(cfg: CN) -> None:
    """Add the keys that no other module owns."""
    # Modules that are imported before this config is read: they register data sets, methods and
    # detectors of your own, and may append to CONFIG_EXTENSIONS.
    cfg.PLUGINS = ()

    # Data sets with labels of a teacher (`aid-d2 pseudo-label`) that are mixed into every batch,
    # and their share of it.
    cfg.DATASETS.UNLABELED = ()
    cfg.DATALOADER.UNLABELED_RATIO = 0.5
    # Leave ignore regions (`iscrowd`) out of the training loss. By default they are background, as
    # in AID's released code.
    cfg.INPUT.MASK_IGNORE_REGIONS = False

    # Train under bfloat16 autocast, on GPU or CPU. Detectron2's SOLVER.AMP is float16, GPU alone.
    cfg.SOLVER.BF16 = False
    # Train with maps in the memory order that convolutions are fastest in, on most devices.
    cfg.SOLVER.CHANNELS_LAST = False
    # Run the backbone through torch.compile, which needs a compiler.
    cfg.SOLVER.COMPILE = False

    cfg.DISTILL = CN()
    # False trains and evaluates the student of a DistilledDetector alone; no teacher is needed.
    cfg.DISTILL.ENABLED = True
    # The student's meta-architecture: what MODEL.META_ARCHITECTURE is in its plain config.
    cfg.DISTILL.STUDENT = ""

    cfg.DISTILL.TEACHER = CN()
    # Config of the teacher: the yaml it was trained with, or the config.yaml in its OUTPUT_DIR.
    cfg.DISTILL.TEACHER.CONFIG_FILE = ""
    # Checkpoint of the teacher; has to fit its config completely.
    cfg.DISTILL.TEACHER.WEIGHTS = ""
    # As SOLVER.COMPILE.
    cfg.DISTILL.TEACHER.COMPILE = False
    # Start the student's pyramid and heads from the teacher's, where names and shapes agree.
    # MODEL.WEIGHTS is loaded after that, and ImageNet weights leave them alone.
    cfg.DISTILL.INHERIT = False

    # Names of distillers, added up; `auto` takes the best one that fits (distillers/build.py).
    cfg.DISTILL.METHODS = ("auto",)
    # Factor on all distillation losses: lambda in AID eq. 1.
    cfg.DISTILL.WEIGHT = 1.0
    # The factor rises linearly from 0 over this many iterations.
    cfg.DISTILL.WARMUP_ITERS = 0
    # float32 runs the teacher exactly as it was trained. bfloat16 is about twice as fast: under
    # autocast, batch norms folded into the convolutions, channels last; methods that support it
    # then run under autocast too, whatever SOLVER.BF16 says. auto: where the device has it.
    cfg.DISTILL.PRECISION = "auto"
    # What the config.yaml of a detector may still have.
    for key in ("DISTILL.TEACHER.PRECISION", "DISTILL.RECOMPUTE", "DISTILL.AID.RESCALE"):
        cfg.register_deprecated_key(key)


# Functions `extend(cfg)` that add keys: those of aid_d2, and those of further projects, without
# which a detector of such a project could be neither student nor teacher.
CONFIG_EXTENSIONS: list[Callable[[CN], None]] = [_add_keys]


def add_aid_config(cfg: CN) -> None:
    """Add the keys of aid_d2 and of further CONFIG_EXTENSIONS, with their defaults.

    The ordinary MODEL keys describe the student: a yaml without DISTILL keys, and with the
    student's own META_ARCHITECTURE, trains the student alone.
    """
    for extend in CONFIG_EXTENSIONS:
        extend(cfg)


def default_config(opts: Sequence = ()) -> Config:
    """Detectron2's defaults with the keys of CONFIG_EXTENSIONS, then KEY VALUE ..."""
    cfg = get_cfg()
    add_aid_config(cfg)
    result = Config(cfg)
    vars(result).update(vars(cfg))  # the deprecated keys
    result.merge_from_list(list(opts))
    return result


def load_config(config_file: str, opts: Sequence = ()) -> Config:
    """:func:`default_config`, then a yaml file, then KEY VALUE ...

    The modules that PLUGINS of the file names are imported before.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: there is no such plugin.
        ValueError: the file is no yaml, or a key is unknown or of another type.
    """
    path = find_config(config_file)
    try:
        values = Config.load_yaml_with_base(path, allow_unsafe=True)
        if values.get("VERSION") not in (None, 1, 2):
            raise ValueError(f"VERSION is {values['VERSION']!r}; the keys are those of VERSION 2.")
        for name in _plugins(values):
            _import_plugin(path, name)
        cfg = default_config()
        cfg.merge_from_file(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    cfg.merge_from_list(list(opts))
    return cfg


def _plugins(values: dict) -> Sequence[str]:
    names = values.get("PLUGINS", [])
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, str) and all(map(str.isidentifier, name.split("."))) for name in names
    ):
        raise ValueError(f"PLUGINS is {names!r}; it has to be a list of modules, as [my.module].")
    return names


def _import_plugin(path: str, name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path}: PLUGINS {name}: {error}", name=error.name) from error


def find_config(config_file: str) -> str:
    """The path of a config file; of one that is not there, the one that aid_d2 comes with, or the
    one in Detectron2's model zoo.

    Raises:
        FileNotFoundError: none of them has one of this name.
    """
    own = get_config_file(config_file.removeprefix("configs/"))
    for path in (PathManager.get_local_path(config_file), own, _in_model_zoo(config_file)):
        if os.path.isfile(path):
            return path
    zoo = os.path.join(os.path.dirname(model_zoo.__file__), "configs")
    without = (
        "" if os.path.isdir(zoo) else ", which comes without configs, as v0.6 of Python files does"
    )
    raise FileNotFoundError(
        f"There is no config file {config_file}, nor one of this name among those of aid_d2 or of "
        f"the model zoo of the installed Detectron2{without}."
    )


def _in_model_zoo(name: str) -> str:
    try:
        return model_zoo.get_config_file(name)
    except RuntimeError:  # not there; v0.6 that was built from its Python files has none
        return ""


def use_cpu_without_gpu(cfg: CN) -> bool:
    """Set MODEL.DEVICE to cpu where it is a GPU and there is none; returns whether it was set."""
    missing = cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()
    if missing:
        cfg.MODEL.DEVICE = "cpu"
    return missing


def show_from(cfg: CN, score: float) -> None:
    """Let a detector show what scores at least that much, however little it shows by itself."""
    for node in (cfg.MODEL.RETINANET, cfg.MODEL.GFL, cfg.MODEL.FCOS, cfg.MODEL.ROI_HEADS):
        node.SCORE_THRESH_TEST = min(node.SCORE_THRESH_TEST, score)


def plain_student(cfg: CN) -> CN:
    """The config of a distilled detector's student alone; of any other detector a copy.

    Raises:
        ValueError: DISTILL.STUDENT is no meta-architecture of a student.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.META_ARCHITECTURE == DISTILLED:
        if cfg.DISTILL.STUDENT not in META_ARCH_REGISTRY or cfg.DISTILL.STUDENT == DISTILLED:
            raise ValueError(
                f"DISTILL.STUDENT {cfg.DISTILL.STUDENT!r} is no meta-architecture for a student; "
                "use what MODEL.META_ARCHITECTURE of the plain student says, such as RetinaNet."
            )
        cfg.MODEL.META_ARCHITECTURE = cfg.DISTILL.STUDENT
    return cfg
