"""tools/corrupt_coco.py: labels that are wrong on purpose."""

import copy
import json

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
def corrupt(load_tool, monkeypatch, tmp_path, coco):
    """`corrupt(name, share, *options)`: what the tool writes."""
    (tmp_path / "clean.json").write_text(json.dumps(coco))
    tool = load_tool("corrupt_coco")

    def call(name, share, *options):
        output = tmp_path / name
        monkeypatch.setattr(
            "sys.argv",
            ["corrupt_coco.py", str(tmp_path / "clean.json")]
            + ["--share", str(share), "--output", str(output), *options],
        )
        tool.main()
        return json.loads(output.read_text())

    return call


def test_three_kinds_of_errors_of_the_asked_share(corrupt, coco, capsys):
    noisy = corrupt("noisy.json", 0.3)
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
    first = corrupt("first.json", 0.5)
    assert corrupt("again.json", 0.5) == first
    assert corrupt("other.json", 0.5, "--seed", "1") != first
    assert corrupt("clean_copy.json", 0) == coco


def test_a_single_class_is_never_wrong(corrupt, coco, tmp_path):
    coco["categories"] = coco["categories"][:1]
    (tmp_path / "clean.json").write_text(json.dumps(coco))
    kinds = {x.get("label_error") for x in corrupt("noisy.json", 1)["annotations"]}
    assert kinds == {"jittered box"}


def test_errors_are_named(corrupt):
    with pytest.raises(ValueError, match="share of wrong labels is 1.5; it has to lie between"):
        corrupt("noisy.json", 1.5)
    corrupt("noisy.json", 0.1)
    with pytest.raises(FileExistsError, match="noisy.json exists already"):
        corrupt("noisy.json", 0.1)
