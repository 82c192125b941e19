"""Teachers that the tests of distilled detectors share."""

import pytest
from helpers.training import FAMILIES

# Another width than the student's, so that no adapter is the identity.
WIDE = {"MODEL.FPN.OUT_CHANNELS": 24}


@pytest.fixture(scope="module")
def wide_teachers(small_cfg, build_seeded, save_teacher):
    result = {}
    for detector in FAMILIES:
        cfg = small_cfg(detector, WIDE)
        result[detector] = save_teacher(cfg, build_seeded(cfg, seed=101))
    return result
