"""What happens when an image of a data set cannot be read."""

import logging
from collections.abc import Callable
from typing import Any

from .image_check import DEEP, image_fault

logger = logging.getLogger(__name__)


class NamingMapper:
    """A dataset mapper whose error names the image that it could not read."""

    def __init__(self, mapper: Callable[[dict], dict]):
        self.mapper = mapper

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Raises:
            ValueError: the image cannot be read, or has another size than the annotations say.
        """
        try:
            return self.mapper(dataset_dict)
        except Exception as error:
            if fault := _breakage(dataset_dict):
                raise ValueError(
                    f"{dataset_dict['file_name']} is one of the {fault}: repair or remove it. "
                    "`aid-d2 doctor --data CONFIG` finds all of them."
                ) from error
            raise


def read_or_skip(read: Callable[[dict], Any], dataset_dict: dict) -> Any:
    """What `read` makes of a data set dict; None, with a warning, if its image cannot be read."""
    try:
        return read(dataset_dict)
    except Exception:
        # Anything else than a broken image is no reason to go on.
        if (fault := _breakage(dataset_dict)) is None:
            raise
        logger.warning(f"{dataset_dict['file_name']} is skipped: it is one of the {fault}.")
        return None


def _breakage(dataset_dict: dict) -> str | None:
    """The fault of its image for which it cannot be read; None if that is no reason."""
    fault = image_fault(dataset_dict, decode=True)
    return None if fault == DEEP else fault
