"""Inheriting: a student starts from its teacher's pyramid and heads."""

import logging

from torch import nn

logger = logging.getLogger(__name__)


def inherit(student: nn.Module, teacher: nn.Module) -> None:
    """Copy all parameters and buffers outside the bottom-up network whose names and shapes agree.

    Of a backbone without a `bottom_up` network nothing is copied.

    A common aid of distillation where both detectors have pyramid and heads of one shape (GID,
    Dai et al., CVPR 2021; CrossKD, Wang et al., CVPR 2024).

    Raises:
        ValueError: none agree.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    bottom_up = hasattr(student.backbone, "bottom_up")
    own_alone = "backbone.bottom_up." if bottom_up else "backbone."
    wanted = {key for key in own if not key.startswith(own_alone)}
    shared = {
        key: theirs[key] for key in wanted & theirs.keys() if own[key].shape == theirs[key].shape
    }
    if not shared:
        raise ValueError(
            "DISTILL.INHERIT is True, but outside the bottom-up network student and teacher have "
            "no parameter of equal name and shape. Give the student the teacher's "
            "MODEL.FPN.OUT_CHANNELS and head, or set DISTILL.INHERIT False."
        )
    # Some layers take a partial state for that of an old version, and fill it up.
    own.update(shared)
    student.load_state_dict(own)
    left = sorted(wanted - shared.keys())
    logger.info(
        f"The student inherits {len(shared)} parameters and buffers of its teacher"
        + (f"; not {', '.join(left)}." if left else ".")
    )
