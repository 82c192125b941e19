"""What may not change between a run and its resumption."""

import logging
import os

from detectron2.config import CfgNode

from ..aid import AID, PRESETS

logger = logging.getLogger(__name__)

# With another value the checkpoint's parameters are others, or are trained for something else.
FIXED = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.GFL.NUM_CLASSES",
    "MODEL.FCOS.NUM_CLASSES",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "DISTILL.ENABLED",
    "DISTILL.STUDENT",
    "DISTILL.METHODS",
    "DISTILL.TEACHER.CONFIG_FILE",
    "DISTILL.TEACHER.WEIGHTS",
)
# The checkpoint's optimizer brings its own.
IGNORED = ("SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY")


def check_unchanged(cfg: CfgNode) -> None:
    """Compare a config with the one of the run that OUTPUT_DIR holds, if it holds one.

    A change that has no effect, and one of AID, is told by a warning.

    Raises:
        ValueError: one of the FIXED keys has changed.
    """
    config = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return
    if not os.path.isfile(config):
        return
    before = CfgNode(CfgNode.load_yaml_with_base(config, allow_unsafe=True))
    for change in _changed(before, cfg, IGNORED):
        logger.warning(f"--resume: {change} has no effect, since the checkpoint brings its own.")
    was, now = _aid(before, cfg), AID.from_config(cfg.DISTILL.AID)
    if was != now:
        logger.warning(f"--resume: AID was {was}, and is {now} for the rest of this training.")
    if changed := _changed(before, cfg, FIXED):
        raise ValueError(
            f"--resume: since the checkpoint in {cfg.OUTPUT_DIR}, these keys have changed: "
            f"{', '.join(changed)}. Set them back, or train anew in another OUTPUT_DIR, with that "
            "checkpoint as MODEL.WEIGHTS if you like."
        )


def _aid(before: CfgNode, cfg: CfgNode) -> AID:
    """AID as an earlier config has it, whose defaults may have been others; what it does not know
    is as in `cfg`.
    """
    node = cfg.DISTILL.AID.clone()
    known = before.DISTILL.AID if "DISTILL" in before and "AID" in before.DISTILL else {}
    node.update({key: known[key] for key in node if key in known})
    node.update(PRESETS.get(node.PRESET, {}))  # beside which other values are refused today
    return AID.from_config(node)


def _changed(before: CfgNode, cfg: CfgNode, keys: tuple[str, ...]) -> list[str]:
    """`KEY from OLD to NEW` of the keys whose value is another one."""
    values = ((key, _value(before, key), _value(cfg, key)) for key in keys)
    return [
        f"{key} from {a!r} to {b!r}" for key, a, b in values if a is not None and not _same(a, b)
    ]


def _same(before, now) -> bool:
    """Whether two values are equal, or paths of one file."""
    if isinstance(before, str) and isinstance(now, str):
        return os.path.realpath(before) == os.path.realpath(now)
    return before == now


def _value(cfg: CfgNode, key: str):
    """The value of a dotted key, a list as a tuple; None where there is no such key."""
    for name in key.split("."):
        if name not in cfg:
            return None
        cfg = cfg[name]
    return tuple(cfg) if isinstance(cfg, list) else cfg
