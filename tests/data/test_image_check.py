import numpy as np
import pytest
from PIL import Image

from aid_d2.data.image_check import check_images, spread
from detectron2.data.detection_utils import read_image

_ROTATED_BY_90 = 6  # of the EXIF tag 274


@pytest.fixture
def record(tmp_path):
    """Writes an image of 60x40; returns its record, with `size` said to be its width and height."""

    def make(name="a.jpg", size=(60, 40), mode="RGB", **options):
        path = tmp_path / name
        noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(noise).convert(mode).save(path, **options)
        return {"file_name": str(path), "width": size[0], "height": size[1]}

    return make


def _exif(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "RGBA", "1"])
def test_images_that_detectron2_reads_rightly_have_no_problem(record, mode):
    assert check_images([record("a.png", mode=mode)]) == []
    assert check_images([record("a.png", mode=mode)], sample=1) == []


@pytest.mark.parametrize(
    "size, complaint", [((40, 60), "swapped"), ((61, 40), "of another size than")]
)
def test_other_sizes_are_fatal(record, size, complaint):
    (problem,) = check_images([record(size=size)], sample=1)
    assert problem.fatal and complaint in problem.kind and "a.jpg" in str(problem)


def test_a_size_before_the_rotation_is_told_from_swapped_numbers(record):
    unrotated = record(size=(60, 40), exif=_exif(_ROTATED_BY_90))
    assert read_image(unrotated["file_name"]).shape[:2] == (60, 40), "height and width, rotated"
    (problem,) = check_images([unrotated], sample=1)
    assert problem.fatal and "EXIF" in problem.kind
    assert check_images([record(size=(40, 60), exif=_exif(_ROTATED_BY_90))], sample=1) == []


def test_missing_and_unreadable_images_are_named(record, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    rows = [record(), {**record(), "file_name": str(tmp_path / "text.jpg")}]
    rows.append({**rows[0], "file_name": str(tmp_path / "none.jpg")})
    problems = {p.kind: p.places for p in check_images(rows)}
    assert problems == {
        "images that cannot be read": (str(tmp_path / "text.jpg"),),
        "images that do not exist": (str(tmp_path / "none.jpg"),),
    }


def test_a_truncated_image_is_found_when_all_are_decoded(record):
    row = record()
    with open(row["file_name"], "r+b") as file:
        file.truncate(1000)
    (problem,) = check_images([row])
    assert problem.fatal and problem.kind == "images that cannot be read"


def test_a_path_with_the_folder_twice_is_recognized(record, tmp_path):
    (tmp_path / "train").mkdir()
    row = record("train/a.jpg")
    row["file_name"] = str(tmp_path / "train" / "train" / "a.jpg")
    (problem,) = check_images([row], sample=1)
    assert problem.fatal and "twice" in problem.kind


def test_16_bits_are_a_warning(tmp_path):
    path = str(tmp_path / "deep.png")
    Image.fromarray(np.full((40, 60), 1000, np.uint16)).save(path)
    assert read_image(path, "BGR").min() == 255, "Detectron2 clips the values"
    (problem,) = check_images([{"file_name": path, "width": 60, "height": 40}], sample=1)
    assert not problem.fatal and "8 bits" in problem.kind


def test_a_sample_is_spread_over_all_images(record):
    good, bad = record("a.jpg"), record("b.jpg", size=(1, 1))
    assert check_images([good] * 10 + [bad] * 10, sample=2)[0].count == 1
    assert check_images([bad] * 5, sample=0) == []


@pytest.mark.parametrize("total, count", [(39, 20), (199, 100), (63, 32), (5, 5), (3, 7), (0, 4)])
def test_gaps_of_a_spread_are_even(total, count):
    """The ends count too: as many are left out behind the last one as between two, or fewer."""
    chosen = spread(range(total), count)
    gaps = [after - before for before, after in zip(chosen, [*chosen[1:], total])]
    assert len(chosen) == min(total, count) and (not total or chosen[0] == 0)
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("size", [(60, 40), (40, 60)])
def test_a_tiff_with_a_rotation_is_fatal(record, size):
    """Pillow turns it, and then Detectron2 does."""
    (problem,) = check_images([record("a.tiff", size, exif=_exif(_ROTATED_BY_90))], sample=1)
    assert problem.fatal and "TIFF" in problem.kind
    assert check_images([record("b.tiff")], sample=1) == []
