"""The memory of a detector is what its own arrays take."""

import numpy as np
import pytest

from aid_d2.deploy.memory import peak_memory

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="Linux alone tells")
MIB = 2**20


class Arrays:
    """A detector of 60 MiB, which needs 100 MiB for a moment to be built and 30 MiB to run."""

    def __init__(self):
        np.ones(100 * MIB, np.uint8)
        self.weights = np.ones(60 * MIB, np.uint8)

    def run(self, image):
        assert image.shape == (4, 4, 3)
        np.ones(30 * MIB, np.uint8)


def test_what_is_held_and_what_a_run_takes():
    assert peak_memory(Arrays, np.zeros((4, 4, 3), np.uint8)) == pytest.approx(90, abs=5)
