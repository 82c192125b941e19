import pytest
from PIL import Image

from aid_d2.data.yolo import read_yolo


@pytest.fixture
def write(tmp_path):
    """Writes an image of 100x50 and, if there is a text for it, its labels."""

    def make(image, labels=None):
        path = tmp_path / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(path)
        if labels is not None:
            text = tmp_path / image.replace("images/", "labels/")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.with_suffix(".txt").write_text(labels)
        return tmp_path

    return make


def test_a_yaml_with_images_and_labels(write):
    write("images/train/a.jpg", "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.2 0.4\n")
    write("images/train/empty.PNG")
    root = write("images/val/b.jpg", "0 0.5 0.5 1 1\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car, bus]\n")
    coco, image_root, problems = read_yolo(root / "data.yaml", "train")
    assert problems == [] and image_root == root
    assert [c["name"] for c in coco["categories"]] == ["car", "bus"]
    assert [(i["file_name"], i["width"], i["height"]) for i in coco["images"]] == [
        ("images/train/a.jpg", 100, 50),
        ("images/train/empty.PNG", 100, 50),
    ]
    first, second = coco["annotations"]
    assert (first["category_id"], second["category_id"]) == (2, 1)
    assert first["bbox"] == pytest.approx([40, 15, 20, 20]) and first["area"] == pytest.approx(400)
    assert second["bbox"] == pytest.approx([0, 0, 20, 20])


def test_labels_come_before_a_file_beside_the_image(write):
    root = write("images/a.jpg", "1 0.5 0.5 0.2 0.4\n")
    (root / "images" / "a.txt").write_text("0 0.5 0.5 1 1\n0 0.5 0.5 1 1\n")
    (root / "data.yaml").write_text("train: images\nnames: [car, bus]\n")
    (annotation,) = read_yolo(root / "data.yaml", "train")[0]["annotations"]
    assert annotation["category_id"] == 2


def test_keypoints_are_refused(write):
    """Their lines could be taken for polygons."""
    root = write("images/a.jpg", "0 .5 .5 .2 .2 .45 .45 .55 .5\n")
    (root / "data.yaml").write_text("train: images\nnames: [person]\nkpt_shape: [2, 2]\n")
    with pytest.raises(ValueError, match="data.yaml is of keypoints"):
        read_yolo(root / "data.yaml", "train")


@pytest.mark.parametrize("names", ["{0: car, 1: bus}", "[car, bus]"])
@pytest.mark.parametrize("train", ["train/images", "../train/images", "[train/images]", "list.txt"])
def test_layouts_of_other_tools(write, names, train):
    root = write("train/images/a.jpg", "1 0.5 0.5 1 1")
    (root / "list.txt").write_text("train/images/a.jpg\n")
    (root / "data.yaml").write_text(f"train: {train}\nnames: {names}\nnc: 2\n")
    coco, image_root, problems = read_yolo(root / "data.yaml", "train")
    assert problems == [] and [a["category_id"] for a in coco["annotations"]] == [2]
    assert (image_root / coco["images"][0]["file_name"]).resolve() == root / "train/images/a.jpg"


def test_a_flat_folder_with_a_class_list(write):
    root = write("a.jpg", "0 0.5 0.5 0.5 0.5\n")
    (root / "classes.txt").write_text("car\n")
    coco, image_root, problems = read_yolo(root)
    assert (image_root, problems) == (root, [])
    assert coco["annotations"][0]["bbox"] == pytest.approx([25, 12.5, 50, 25])
    with pytest.raises(ValueError, match="no split 'train'"):
        read_yolo(root, "train")


def test_a_polygon_becomes_the_box_around_it(write):
    root = write("a.jpg", "0 0.1 0.2 0.5 0.2 0.3 0.8\n")
    (root / "classes.txt").write_text("car\n")
    coco, _, _ = read_yolo(root)
    assert coco["annotations"][0]["bbox"] == pytest.approx([10, 10, 40, 30])


def test_faults_are_counted_by_kind_and_name_file_and_line(write):
    lines = ["0 0.5 0.5 0.1 0.1", "", "7 0.5 0.5 0.1 0.1", "0 50 20 10 10"]
    root = write("a.jpg", "\n".join([*lines, "0 0.5 0.5", "car 1 1 1 1"]))
    (root / "classes.txt").write_text("car\nbus\n")
    (root / "b.jpg").write_text("no image")
    coco, _, problems = read_yolo(root)
    assert len(coco["annotations"]) == 1
    assert sorted(map(str, problems)) == [
        f"images that cannot be read: 1 ({root}/b.jpg)",
        "lines that are neither `class x y width height` nor `class` and a polygon: 2 "
        f"({root}/a.txt:5, {root}/a.txt:6)",
        f"lines with a class that is not one of 0..1: 1 ({root}/a.txt:3)",
        f"lines with a number outside of 0..1: 1 ({root}/a.txt:4)",
    ]


@pytest.mark.parametrize(
    "content, error, complaint",
    [
        ("train: images", ValueError, "no `names`"),
        ("names: [car]", ValueError, "no key 'train'"),
        ("names: {5: car}\ntrain: images", ValueError, "no `names`"),
        ("names: [car]\ntrain: nowhere", FileNotFoundError, "no .*nowhere"),
        ("names: [car\n", ValueError, "not a yaml file"),
    ],
)
def test_other_yaml_files_are_refused(write, content, error, complaint):
    root = write("images/a.jpg", "0 0.5 0.5 0.5 0.5")
    (root / "data.yaml").write_text(content)
    with pytest.raises(error, match=f"data.yaml.*{complaint}"):
        read_yolo(root / "data.yaml", "train")


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="No YOLO data set .*none.yaml"):
        read_yolo(tmp_path / "none.yaml", "train")
    with pytest.raises(FileNotFoundError, match="No class list .*classes.txt"):
        read_yolo(write("a.jpg"))
    (tmp_path / "classes.txt").write_text("car\n")
    with pytest.raises(FileNotFoundError, match="No label file for any image .*a.txt"):
        read_yolo(tmp_path)


def test_linked_folders_are_followed_and_hidden_files_are_none(write, tmp_path):
    write("images/a.jpg", "0 0.5 0.5 1 1\n")
    write("images/.ipynb_checkpoints/a-checkpoint.jpg")
    write("images/._a.jpg")
    write("elsewhere/b.jpg")
    (tmp_path / "images/part").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "images")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [car]\n")
    coco, _, problems = read_yolo(tmp_path / "data.yaml", "train")
    assert [x["file_name"] for x in coco["images"]] == ["images/a.jpg", "images/part/b.jpg"]
    assert problems == []
