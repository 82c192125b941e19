"""The keys that aid_d2 adds to a Detectron2 config."""

from collections.abc import Callable, Sequence

import torch

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from .distillers import DISTILLER_REGISTRY
from .modeling.backbones import add_backbone_config
from .modeling.fcos import add_fcos_config
from .modeling.gfl import add_gfl_config

# The meta-architecture of this project.
DISTILLED = "DistilledDetector"


def add_aid_config(cfg: CN) -> None:
    """Add the node DISTILL and the data keys of aid_d2, with their defaults.

    The ordinary MODEL keys describe the student: a yaml without its DISTILL keys, and with the
    student's own META_ARCHITECTURE, trains the student alone.
    """
    # Own COCO-json data sets to register: a list of [name, json file, image folder], relative paths
    # being under $DETECTRON2_DATASETS.
    cfg.DATASETS.COCO_JSON = []
    # Data sets with labels of a teacher (tools/pseudo_label.py) that are mixed into every batch,
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

    # MODEL.GFL, MODEL.FCOS and MODEL.MOBILENETV2
    add_gfl_config(cfg)
    add_fcos_config(cfg)
    add_backbone_config(cfg)

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

    # Names of distillers, added up.
    cfg.DISTILL.METHODS = ("AttentionGuided", "NonLocal")
    # Factor on all distillation losses: lambda in AID eq. 1.
    cfg.DISTILL.WEIGHT = 1.0
    # The factor rises linearly from 0 over this many iterations.
    cfg.DISTILL.WARMUP_ITERS = 0
    # Run each method again in the backward pass instead of keeping what it computes: less memory,
    # more time.
    cfg.DISTILL.RECOMPUTE = False
    # float32 runs the teacher exactly as it was trained. bfloat16 is about twice as fast: under
    # autocast, batch norms folded into the convolutions, channels last; methods that support it then
    # run under autocast too, whatever SOLVER.BF16 says. auto: where the device has it.
    cfg.DISTILL.PRECISION = "auto"
    # What it was called before, and the config.yaml of a teacher may still have.
    cfg.register_deprecated_key("DISTILL.TEACHER.PRECISION")

    cfg.DISTILL.AID = CN()
    # False distils with weight 1 everywhere.
    cfg.DISTILL.AID.ENABLED = True
    # Strength of the modulation exp(-alpha * teacher's loss), AID eq. 1; 0.1 in the paper.
    cfg.DISTILL.AID.ALPHA = 0.1
    # What has a weight of its own: level (the released code), image (the paper's equation),
    # instance (an object) or location.
    cfg.DISTILL.AID.GRANULARITY = "instance"
    # Of level and image: `native` divides the teacher's loss as the detector's own loss does;
    # `per_level` divides each level by its own number of positive anchors.
    cfg.DISTILL.AID.NORMALIZER = "native"

    # Take for the loss only what the teacher's exceeds the student's own by, so that it counts fully
    # where it is the better of the two. Not in the paper; for detectors of one kind.
    cfg.DISTILL.AID.RELATIVE = False
    # Divide the weights by their mean in the batch, for objects and for background apart: AID then
    # moves distillation among objects and takes none away. The paper does not.
    cfg.DISTILL.AID.RESCALE = False

    # The keys of each method stand beside its code.
    for name, distiller in DISTILLER_REGISTRY:
        cfg.DISTILL[name.upper()] = distiller.config()


# Functions `extend(cfg)` that add the keys of further projects, as `add_aid_config` does: without
# them a detector of such a project could not be a teacher.
CONFIG_EXTENSIONS: list[Callable[[CN], None]] = []


def default_config() -> CN:
    """Detectron2's defaults with the keys of aid_d2 and of CONFIG_EXTENSIONS."""
    cfg = get_cfg()
    for extend in (add_aid_config, *CONFIG_EXTENSIONS):
        extend(cfg)
    return cfg


def load_config(config_file: str, opts: Sequence = ()) -> CN:
    """:func:`default_config`, then a yaml file, then KEY VALUE ..."""
    cfg = default_config()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    return cfg


def use_cpu_without_gpu(cfg: CN) -> bool:
    """Set MODEL.DEVICE to cpu where it is a GPU and there is none; returns whether it was set."""
    missing = cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()
    if missing:
        cfg.MODEL.DEVICE = "cpu"
    return missing


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
