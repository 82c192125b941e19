import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from aid_d2.data.kitti import KITTI_CLASSES, kitti_to_coco, parse_label_file, read_splits
from aid_d2.data.synthetic import SceneSetConfig, render_scene, scene, write_scene_set
from aid_d2.data.synthetic.canvas import Camera, Canvas, Light, Pose
from aid_d2.data.synthetic.people import random_person
from aid_d2.data.synthetic.vehicles import VAN, Vehicle

CONFIG = SceneSetConfig(images=10, seed=4)


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
    write_scene_set(tmp_path / "other", SceneSetConfig(images=10, seed=5))
    image = "training/image_2/000003.png"
    assert contents(tmp_path / "other")[image] != contents(clean_set)[image]


def test_label_noise_is_listed_exactly_and_spares_validation(clean_set, tmp_path):
    noisy = tmp_path / "noisy"
    write_scene_set(noisy, SceneSetConfig(images=10, seed=4, label_noise=0.5))
    changes = json.loads((noisy / "label_noise.json").read_text())
    assert {c["kind"] for c in changes} == {"wrong class", "jittered box", "dropped", "false box"}
    old, new = contents(clean_set), contents(noisy)
    for name in old:
        if name.startswith(("training/image_2", "ImageSets")):
            assert new[name] == old[name]
    assert not {c["frame"] for c in changes} & set(read_splits(noisy)["val"])
    for frame in read_splits(noisy)["trainval"]:
        name = f"training/label_2/{frame}.txt"
        before, after = (Counter(text[name].decode().splitlines()) for text in (old, new))
        listed = [c for c in changes if c["frame"] == frame]
        assert before - after == Counter(c["true"] for c in listed if c["true"])
        assert after - before == Counter(c["written"] for c in listed if c["written"])
        parse_label_file(noisy / name)


def test_complete_set_is_kept_and_an_interrupted_one_is_finished(tmp_path, monkeypatch):
    small = SceneSetConfig(images=3, height=64, width=96)
    write_scene_set(tmp_path / "whole", small)
    assert not write_scene_set(tmp_path / "whole", small)

    def interrupted(rng, height, width, count=[]):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return render_scene(rng, height, width)

    with monkeypatch.context() as patch:
        patch.setattr("aid_d2.data.synthetic.dataset.render_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_scene_set(tmp_path / "half", small)
    assert write_scene_set(tmp_path / "half", small)
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")


def test_never_writes_over_something_else(clean_set, tmp_path):
    before = contents(clean_set)
    with pytest.raises(FileExistsError, match="holds a set of other settings"):
        write_scene_set(clean_set, SceneSetConfig(images=10, seed=4, label_noise=0.1))
    assert contents(clean_set) == before
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds other files"):
        write_scene_set(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"images": 1}, "at least 2 images"),
        ({"images": 4, "height": 20}, "at least 64 x 64"),
        ({"images": 4, "label_noise": 1.5}, "label_noise must lie between 0 and 1"),
    ],
)
def test_impossible_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        SceneSetConfig(**settings)


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


def test_other_sizes_and_the_command_line(tmp_path, monkeypatch, capsys):
    from aid_d2.data.synthetic.__main__ import main

    args = ["synthetic", "--output", str(tmp_path / "s"), "--images", "2"]
    monkeypatch.setattr("sys.argv", [*args, "--height", "96", "--width", "160"])
    main()
    assert Image.open(tmp_path / "s/training/image_2/000001.png").size == (160, 96)
    monkeypatch.setattr("sys.argv", args)
    with pytest.raises(SystemExit, match="error: .*holds a set of other settings"):
        main()


@pytest.mark.parametrize(
    "person_x, expected",
    [(0.0, None), (1.8, {1, 2, 3}), (4.0, {0})],  # behind the van, half behind it, beside it
)
def test_occlusion_follows_what_is_visible(person_x, expected):
    camera = Camera(416, 128, 240.0, 55.0, 1.65)
    light = Light(np.array([0.0, 1.0, 0.0]), 0.6, np.array([200.0, 200.0, 200.0]), 0.0)
    canvas = Canvas(camera, light, np.zeros((128, 416, 3), np.uint8))
    van = Vehicle(VAN, VAN.size, (200, 200, 200))
    person = random_person(np.random.default_rng(0))
    placed = [(van, Pose(0.0, 10.0, -np.pi / 2)), (person, Pose(person_x, 14.0, 0.0))]
    labels = {obj.type: obj for obj in scene._draw_far_to_near(canvas, placed, [])}
    assert labels["Van"].occluded == 0
    if expected is None:
        assert "Pedestrian" not in labels
    else:
        assert labels["Pedestrian"].occluded in expected
