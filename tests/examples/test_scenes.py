"""The scenes of the quickstart: files, labels, and that a set is never written over."""

from collections import Counter

import numpy as np
import pytest
from scenes import SceneSet, render_scene, write_scene_set

from aid_d2.data.kitti import KITTI_CLASSES, kitti_to_coco, read_splits

CONFIG = SceneSet(images=10, seed=4)


def contents(root):
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def clean_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean") / "synthetic_road"
    assert write_scene_set(root, CONFIG)
    return root


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(np.random.default_rng([1, i])) for i in range(30)]


def test_set_is_read_as_kitti(clean_set):
    splits = read_splits(clean_set)
    assert (len(splits["train"]), len(splits["val"])) == (8, 2)
    coco = kitti_to_coco(clean_set, splits["trainval"], KITTI_CLASSES)
    assert all((i["width"], i["height"]) == (416, 128) for i in coco["images"])
    found = {a["category_id"] for a in coco["annotations"] if not a["iscrowd"]}
    assert found == {1, 2, 3}


def test_same_settings_same_bytes_other_seed_other_bytes(clean_set, tmp_path):
    write_scene_set(tmp_path / "again", CONFIG)
    assert contents(tmp_path / "again") == contents(clean_set)
    write_scene_set(tmp_path / "other", SceneSet(images=10, seed=5))
    image = "training/image_2/000003.png"
    assert contents(tmp_path / "other")[image] != contents(clean_set)[image]


def test_complete_set_is_kept_and_an_interrupted_one_is_finished(tmp_path, monkeypatch):
    small = SceneSet(images=3, height=64, width=96)
    write_scene_set(tmp_path / "whole", small)
    assert not write_scene_set(tmp_path / "whole", small)

    count = iter(range(3))

    def interrupted(rng, height, width):
        if next(count) == 1:
            raise KeyboardInterrupt
        return render_scene(rng, height, width)

    with monkeypatch.context() as patch:
        patch.setattr("scenes.render_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_scene_set(tmp_path / "half", small)
    assert write_scene_set(tmp_path / "half", small)
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")


def test_never_writes_over_something_else(clean_set, tmp_path):
    before = contents(clean_set)
    with pytest.raises(FileExistsError, match="holds a set of other settings"):
        write_scene_set(clean_set, SceneSet(images=10, seed=5))
    assert contents(clean_set) == before
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds other files"):
        write_scene_set(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"images": 1}, "at least 2 images"),
        ({"images": 4, "height": 20}, "at least 64 x 64"),
    ],
)
def test_impossible_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        SceneSet(**settings)


def test_scenes_are_what_a_detector_needs(scenes):
    for image, objects in scenes:
        assert image.shape == (128, 416, 3) and image.dtype == np.uint8
        for obj in objects:
            x1, y1, x2, y2 = obj.bbox
            assert 0 <= x1 < x2 <= 416 and 0 <= y1 < y2 <= 128
            assert 0 <= obj.truncated < 1
    objects = [obj for _, listed in scenes for obj in listed]
    kinds = Counter(obj.type for obj in objects)
    assert min(kinds[name] for name in KITTI_CLASSES) >= 10
    assert {obj.occluded for obj in objects} == {0, 1, 2, 3}
    assert any(obj.truncated > 0.2 for obj in objects)
    heights = [obj.bbox[3] - obj.bbox[1] for obj in objects]
    assert max(heights) > 5 * min(heights)


def test_people_stand_where_their_3d_location_says(scenes):
    """Seen by one camera, feet of all people in a scene give the same horizon."""
    spreads = []
    for _, objects in scenes:
        people = [o for o in objects if o.type == "Pedestrian" and o.bbox[3] < 128]
        horizons = [o.bbox[3] - 0.58 * 416 * o.location[1] / o.location[2] for o in people]
        if len(horizons) > 1:
            spreads.append(max(horizons) - min(horizons))
    assert len(spreads) > 5 and max(spreads) < 2.0  # pixels; a lifted foot is a little higher


def test_other_sizes(tmp_path):
    write_scene_set(tmp_path / "small", SceneSet(images=2, height=96, width=160))
    coco = kitti_to_coco(tmp_path / "small", ["000000", "000001"], KITTI_CLASSES)
    assert all((x["width"], x["height"]) == (160, 96) for x in coco["images"])
