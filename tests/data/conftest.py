import pytest
from PIL import Image

import aid_d2  # noqa: F401


@pytest.fixture
def write_kitti(tmp_path):
    """Returns write_kitti({frame: text of its label file}, size=(width, height)) -> root."""

    def write(frames, size=(100, 50)):
        root = tmp_path / "kitti"
        for folder in ("image_2", "label_2"):
            (root / "training" / folder).mkdir(parents=True, exist_ok=True)
        for frame, label in frames.items():
            Image.new("RGB", size).save(root / "training" / "image_2" / f"{frame}.png")
            (root / "training" / "label_2" / f"{frame}.txt").write_text(label)
        return root

    return write
