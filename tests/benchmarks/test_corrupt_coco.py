"""benchmarks/corrupt_coco.py: labels that are wrong on purpose."""

import copy
import json

import corrupt_coco
import pytest


@pytest.fixture
def coco():
    """40 images of 100 x 50 pixels with 50 objects each."""
    labels = [
        {
            "id": i,
            "image_id": i % 40,
            "category_id": (2, 5, 9)[i % 3],
            "bbox": [10.0 + i % 60, 5.0, 20.0, 40.0],
            "area": 800.0,
            "iscrowd": 0,
        }
        for i in range(2000)
    ]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 50, "width": 100} for i in range(40)
        ],
        "annotations": labels,
        "categories": [{"id": i, "name": str(i)} for i in (2, 5, 9)],
    }


@pytest.fixture
def corrupt(monkeypatch, tmp_path, coco):
    """`corrupt(name, *options)`: what the tool writes."""
    (tmp_path / "clean.json").write_text(json.dumps(coco))

    def call(name, *options):
        output = tmp_path / name
        monkeypatch.setattr(
            "sys.argv",
            ["corrupt_coco.py", str(tmp_path / "clean.json"), "--output", str(output), *options],
        )
        corrupt_coco.main()
        return json.loads(output.read_text())

    return call


def test_three_kinds_of_errors_of_the_asked_share(corrupt, coco, capsys):
    noisy = corrupt("noisy.json", "--share", "0.3")
    assert noisy["images"] == coco["images"] and noisy["categories"] == coco["categories"]
    before = {x["id"]: x for x in coco["annotations"]}
    errors = {"wrong class": 0, "jittered box": 0}
    for label in noisy["annotations"]:
        true = copy.deepcopy(before.pop(label["id"]))
        kind = label.pop("label_error", None)
        if kind is None:
            assert label == true
            continue
        errors[kind] += 1
        if kind == "wrong class":
            assert label.pop("category_id") != true.pop("category_id")
        else:
            (x, y, w, h), (u, v, s, t) = label.pop("bbox"), true.pop("bbox")
            # Each side moves by 10 to 30% of the box, up to the border of the image.
            for moved, size in ((x - u, s), (y - v, t), (x + w - u - s, s), (y + h - v - t, t)):
                assert abs(moved) <= 0.3 * size + 1e-9
            assert 0 <= x and x + w <= 100 and 0 <= y and y + h <= 50
            assert abs(x - u) >= 0.1 * s - 1e-9
            assert label.pop("area") == pytest.approx(w * h)
            del true["area"]
        assert label == true
    dropped = len(before)
    assert f"{sum(errors.values())} labels are wrong, {dropped} are gone" in capsys.readouterr().out
    for count in (*errors.values(), dropped):
        assert 150 < count < 250  # 200 expected, 13 the deviation


def test_equal_seeds_give_equal_errors(corrupt, coco):
    first = corrupt("first.json", "--share", "0.5")
    assert corrupt("again.json", "--share", "0.5") == first
    assert corrupt("other.json", "--share", "0.5", "--seed", "1") != first
    assert corrupt("clean_copy.json", "--share", "0") == coco


def test_a_single_class_is_never_wrong(corrupt, coco, tmp_path):
    coco["categories"] = coco["categories"][:1]
    (tmp_path / "clean.json").write_text(json.dumps(coco))
    kinds = {x.get("label_error") for x in corrupt("noisy.json", "--share", "1")["annotations"]}
    assert kinds == {"jittered box"}


def test_swapped_classes_have_the_names_of_each_other(corrupt, coco, capsys):
    labels = corrupt("swapped.json", "--swap", "9", "2")["annotations"]
    assert "1333 labels are wrong, 0 are gone" in capsys.readouterr().out  # two thirds of 2000
    for label, true in zip(labels, coco["annotations"], strict=True):
        kind = label.pop("label_error", None)
        assert (kind is None) == (true["category_id"] == 5)
        assert label == {**true, "category_id": {2: 9, 5: 5, 9: 2}[true["category_id"]]}


def test_errors_are_named(corrupt):
    with pytest.raises(ValueError, match="no class 'bus' to be swapped; there are .*'9'"):
        corrupt("swapped.json", "--swap", "2", "bus")
    with pytest.raises(ValueError, match="name each of them once"):
        corrupt("swapped.json", "--swap", "2", "5", "--swap", "5", "9")
    with pytest.raises(ValueError, match="share of wrong labels is 1.5; it has to lie between"):
        corrupt("noisy.json", "--share", "1.5")
    corrupt("noisy.json", "--share", "0.1")
    with pytest.raises(FileExistsError, match="noisy.json exists already"):
        corrupt("noisy.json", "--share", "0.1")
