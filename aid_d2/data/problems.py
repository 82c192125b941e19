"""Faults of a user's data set: each kind counted, all of them told at once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

# How many places of a problem its message names.
_SHOWN = 3


class Fault(ValueError):
    """What is wrong with one file or line; the message is the kind of a :class:`Problem`."""


@dataclass(frozen=True)
class Problem:
    """One kind of fault in a data set.

    Attributes:
        kind: what is wrong, in the plural; for a fault that was mended also what was done.
        count: how often it occurs.
        places: where it occurs, or the first of these places.
        fatal: the data set cannot be used before it is corrected.
    """

    kind: str
    count: int
    places: tuple[str, ...]
    fatal: bool = True

    def __str__(self) -> str:
        first = self.places[:_SHOWN]
        more = ", ..." if self.count > len(first) else ""
        return f"{self.kind}: {self.count} ({', '.join(first)}{more})"


def problems_at(kind: str, places: Sequence[str], fatal: bool = True) -> list[Problem]:
    """The problem of this kind as a list, which is empty where there are no places."""
    return [Problem(kind, len(places), tuple(places), fatal)] if places else []


def problems_of(faults: Mapping[str, Sequence[str]]) -> list[Problem]:
    """The fatal problems of these kinds, each with its places."""
    return [p for kind, places in faults.items() for p in problems_at(kind, places)]


def settle(source: object, problems: Sequence[Problem]) -> None:
    """Log what was mended in a data set, unless something in it cannot be.

    Args:
        source: what the message calls the data set, such as the path of its file.
        problems: everything found in it.

    Raises:
        ValueError: a problem is fatal. The message has one line for each problem, fatal ones first.
    """
    lines = "\n".join(f"  {problem}" for problem in sorted(problems, key=lambda p: not p.fatal))
    if any(problem.fatal for problem in problems):
        raise ValueError(f"{source} has faults to be corrected before it can be used:\n{lines}")
    if problems:
        logger.warning("%s is used, in spite of\n%s", source, lines)
