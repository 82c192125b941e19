"""Random changes of files. AID_D2_EXAMPLES is the number of examples of each test."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

examples = settings(
    max_examples=int(os.getenv("AID_D2_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)


def mutated_bytes(content: bytes):
    """`content` with a part of up to 12 bytes replaced."""
    position = st.integers(0, len(content))
    filling = st.binary(max_size=6) | st.sampled_from([b"nan", b"-1", b"1e999", b"\xff\xfe", b"<"])
    return st.builds(
        lambda i, j, new: content[: min(i, j)] + new + content[max(i, j) :],
        position,
        st.integers(0, 12).flatmap(lambda n: position.map(lambda i: min(i + n, len(content)))),
        filling,
    )


def is_ours(error: Exception, named: str, kinds=(ValueError, FileNotFoundError)) -> bool:
    """Whether an error is one of ours that names a file: those of Python are subclasses, or have a
    number.
    """
    return type(error) in kinds and getattr(error, "errno", None) is None and named in str(error)
