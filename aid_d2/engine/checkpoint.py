"""Checkpoints that are whole on disk, and that fit the model they are loaded into."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..modeling.safe_pickle import SafeCheckpointer
from ..modeling.teacher import DISTILLER_PREFIX

_PARTIAL = ".partial"


class WholeCheckpointer(SafeCheckpointer):
    """Writes a file under another name first, so that a failure leaves earlier files whole.

    Args:
        class_names: saved with the model, since a detector knows its classes by number alone.

    Raises:
        ValueError: on loading, more than half of the tensors of a file do not fit the model.
    """

    def __init__(self, *args, class_names: Sequence[str] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.class_names = class_names

    def save(self, name: str, **kwargs) -> None:
        if self.class_names:
            kwargs["class_names"] = list(self.class_names)
        try:
            super().save(name + _PARTIAL, **kwargs)
        finally:
            partial = os.path.join(self.save_dir, f"{name}{_PARTIAL}.pth")
            if self.save_to_disk and os.path.exists(partial):
                os.remove(partial)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name a file, now whole, as `last_checkpoint`."""
        whole = last_filename_basename.replace(_PARTIAL, "")
        self._rename(last_filename_basename, whole)
        tag = os.path.join(self.save_dir, "last_checkpoint" + _PARTIAL)
        with open(tag, "w") as f:
            f.write(whole)
        self._rename("last_checkpoint" + _PARTIAL, "last_checkpoint")

    def _rename(self, old: str, new: str) -> None:
        os.replace(os.path.join(self.save_dir, old), os.path.join(self.save_dir, new))

    def _load_model(self, checkpoint):
        # What distillation trained beside the student fits no plain one, and does not count.
        total = sum(not key.startswith(DISTILLER_PREFIX) for key in checkpoint["model"])
        result = super()._load_model(checkpoint)
        skipped = [*result.unexpected_keys, *(key for key, *_ in result.incorrect_shapes)]
        skipped = [key for key in skipped if not key.startswith(DISTILLER_PREFIX)]
        if 2 * len(skipped) > total:
            raise ValueError(
                f"{self._path} is of another detector: {len(skipped)} of its {total} tensors do "
                f"not fit, such as {', '.join(skipped[:3])}. Set MODEL.WEIGHTS to a file of this "
                "one."
            )
        return result


def check_unused(folder: str) -> None:
    """
    Raises:
        FileExistsError: a folder holds a checkpoint, which training anew would overwrite.
    """
    found = os.path.isdir(folder) and sorted(x for x in os.listdir(folder) if x.endswith(".pth"))
    if found:
        raise FileExistsError(
            f"OUTPUT_DIR {folder} holds the run of {found[-1]}. Go on with it by --resume, train "
            "anew over it by --overwrite, or choose another OUTPUT_DIR."
        )


def forget_run(folder: str) -> None:
    """Have --resume find no checkpoint of the run in a folder, whose files stay."""
    Path(folder, "last_checkpoint").unlink(missing_ok=True)
