import random
import re

import pytest
from faster_coco_eval import COCOeval_faster
from PIL import ExifTags, Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from samples import REAL_DATA, kitti_line

from aid_d2.data.kitti import (
    KITTI_8_CLASSES,
    KITTI_CLASSES,
    frame_ids,
    kitti_to_coco,
    parse_label_file,
    read_splits,
    split_ids,
)

# Written for this test after the format's published description; all values differ.
LINE = "Cyclist 0.25 2 -1.65 676.60 163.95 688.98 193.93 1.86 0.60 2.02 4.59 1.32 45.84 -1.55"


def as_coco(content):
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def test_fields_of_a_line(tmp_path):
    path = tmp_path / "000001.txt"
    path.write_text(f"{LINE}\n{LINE} 0.75\n")
    truth, detection = parse_label_file(path)
    assert (truth.type, truth.truncated, truth.occluded, truth.alpha) == ("Cyclist", 0.25, 2, -1.65)
    assert truth.bbox == (676.60, 163.95, 688.98, 193.93)
    assert truth.dimensions == (1.86, 0.60, 2.02)
    assert truth.location == (4.59, 1.32, 45.84)
    assert (truth.rotation_y, truth.score) == (-1.55, None)
    assert detection.score == 0.75


def test_empty_label_file_has_no_objects(tmp_path):
    path = tmp_path / "000001.txt"
    path.write_text("")
    assert parse_label_file(path) == []


@pytest.mark.parametrize(
    "line, complaint",
    [
        (LINE.rsplit(" ", 1)[0], "14 fields, expected 15"),
        (LINE + " 1 2", "17 fields, expected 15"),
        (LINE.replace("Cyclist", "Bus"), "unknown type 'Bus', expected one of Car, Van"),
        (LINE.replace("688.98", "wide"), "x2 is 'wide', expected a finite number"),
        (LINE.replace("45.84", "nan"), "z is 'nan', expected a finite number"),
        (LINE.replace(" 2 ", " 0.5 ", 1), "occluded is '0.5', expected an integer"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, complaint):
    path = tmp_path / "000007.txt"
    path.write_text(f"{LINE}\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: {complaint}")):
        parse_label_file(path)


def test_conversion_by_hand(write_kitti):
    label = kitti_line("Pedestrian", (10, 20, 30, 45), "0.10", "1") + kitti_line(
        "Van", (50, 5, 90, 25)
    )
    root = write_kitti({"000003": label, "000012": ""})
    coco = as_coco(kitti_to_coco(root, ["000003", "000012"], KITTI_CLASSES))

    assert [c["name"] for c in coco.loadCats([1, 2, 3])] == ["Car", "Pedestrian", "Cyclist"]
    assert coco.getImgIds() == [3, 12]
    assert coco.imgs[3] == {"id": 3, "file_name": "000003.png", "width": 100, "height": 50}
    assert coco.getAnnIds(imgIds=[12]) == []
    (pedestrian,) = coco.loadAnns(coco.getAnnIds(imgIds=[3], iscrowd=False))
    assert pedestrian["category_id"] == 2
    assert pedestrian["bbox"] == [10, 20, 20, 25] and pedestrian["area"] == 500
    assert (pedestrian["truncated"], pedestrian["occluded"]) == (0.1, 1)
    regions = coco.loadAnns(coco.getAnnIds(imgIds=[3], iscrowd=True))
    assert [r["category_id"] for r in regions] == [1, 2, 3]
    assert all(r["bbox"] == [50, 5, 40, 20] and r["kitti_type"] == "Van" for r in regions)
    assert 0 not in coco.anns


def test_eight_classes_ignore_dont_care_only(write_kitti):
    label = kitti_line("Van", (10, 20, 30, 45)) + kitti_line("DontCare", (50, 5, 90, 25))
    coco = as_coco(kitti_to_coco(write_kitti({"000000": label}), ["000000"], KITTI_8_CLASSES))
    (van,) = coco.loadAnns(coco.getAnnIds(iscrowd=False))
    assert coco.cats[van["category_id"]]["name"] == "Van"
    assert len(coco.getAnnIds(iscrowd=True)) == 8


def test_boxes_are_clipped_or_left_out_with_a_count(write_kitti, caplog):
    label = (
        kitti_line("Car", (-4, 10, 20, 60))
        + kitti_line("Car", (200, 10, 220, 20))
        + kitti_line("Car", (30, 20, 30, 40))
        + kitti_line("Car", (0, 0, 100, 50))
    )
    content = kitti_to_coco(write_kitti({"000000": label}), ["000000"], KITTI_CLASSES)
    assert [a["bbox"] for a in content["annotations"]] == [[0, 10, 20, 40], [0, 0, 100, 50]]
    assert "1 boxes partly outside the image, clipped" in caplog.text
    assert "2 boxes without any area" in caplog.text


@pytest.mark.parametrize("evaluator", [COCOeval, COCOeval_faster])
def test_ignore_regions_are_neither_true_nor_false_positives(write_kitti, evaluator):
    label = (
        kitti_line("Car", (5, 5, 25, 25))
        + kitti_line("Van", (40, 5, 60, 25))
        + kitti_line("DontCare", (70, 5, 100, 45))
    )
    truth = as_coco(kitti_to_coco(write_kitti({"000000": label}), ["000000"], KITTI_CLASSES))

    def car_ap50(*detections):
        results = [
            {"image_id": 0, "category_id": 1, "bbox": box, "score": score}
            for box, score in detections
        ]
        found = as_coco({**truth.dataset, "annotations": []}).loadRes(results)
        evaluation = evaluator(truth, found, "bbox")
        evaluation.params.catIds = [1]
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
        return evaluation.stats[1]

    hit = ([5, 5, 20, 20], 0.5)
    on_van, in_dont_care = ([41, 6, 18, 18], 0.9), ([75, 10, 8, 8], 0.9)
    on_nothing = ([5, 30, 20, 15], 0.9)
    assert car_ap50(hit, on_van, in_dont_care) == pytest.approx(1)
    assert car_ap50(hit, on_van, in_dont_care, on_nothing) == pytest.approx(0.5)
    assert car_ap50(on_van, in_dont_care) == 0


def test_default_split_of_the_full_training_set():
    ids = [f"{i:06d}" for i in range(7481)]
    train, val = split_ids(ids)
    assert (len(train), len(val)) == (5985, 1496)
    assert sorted(train + val) == ids
    shuffled = random.Random(5).sample(ids, len(ids))
    assert split_ids(shuffled) == (train, val)
    assert split_ids(ids, seed=1) != (train, val)


def test_default_split_is_used_without_lists(write_kitti):
    root = write_kitti({f"{i:06d}": "" for i in range(10)})
    splits = read_splits(root)
    assert (splits["train"], splits["val"]) == split_ids(frame_ids(root))
    assert len(splits["train"]) == 8 and splits["trainval"] == frame_ids(root)


def test_lists_replace_the_default_split(write_kitti):
    root = write_kitti({f"{i:06d}": "" for i in range(5)})
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("000004\n000001\n")
    (root / "ImageSets" / "val.txt").write_text("000002\n")
    splits = read_splits(root)
    assert splits["train"] == ["000001", "000004"] and splits["val"] == ["000002"]
    assert splits["trainval"] == ["000001", "000002", "000004"]


@pytest.mark.parametrize(
    "train, val, error, complaint",
    [
        ("000000\n000009", "000001", ValueError, "train.txt lists frame 000009, of which there is"),
        ("000000\n000001", "000001", ValueError, "Frame 000001 is in both .*train.txt and .*val"),
        ("000000\n000000", "000001", ValueError, "train.txt lists frame 000000 more than once"),
        ("000000", "", ValueError, "val.txt is empty"),
        ("000000", None, FileNotFoundError, "val.txt is missing while the other"),
    ],
)
def test_bad_lists_are_explained(write_kitti, train, val, error, complaint):
    root = write_kitti({f"{i:06d}": "" for i in range(3)})
    (root / "ImageSets").mkdir()
    for name, text in (("train", train), ("val", val)):
        if text is not None:
            (root / "ImageSets" / f"{name}.txt").write_text(text)
    with pytest.raises(error, match=complaint):
        read_splits(root)


def test_missing_tree_names_layout_variable_and_readme(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_splits(tmp_path / "kitti")
    for part in (str(tmp_path), "training/label_2", "DETECTRON2_DATASETS", "datasets/README.md"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "lost, kind", [("image_2/000001.png", "image"), ("label_2/000001.txt", "label")]
)
def test_missing_half_of_a_frame_is_named(write_kitti, lost, kind):
    root = write_kitti({"000000": "", "000001": ""})
    (root / "training" / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"Frame 000001 has no {kind}.*{lost} is missing"):
        kitti_to_coco(root, frame_ids(root), KITTI_CLASSES)


def test_unreadable_image_is_named(write_kitti):
    root = write_kitti({"000000": ""})
    (root / "training/image_2/000000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="000000.png cannot be read as an image"):
        kitti_to_coco(root, ["000000"], KITTI_CLASSES)


def test_upper_case_suffixes_are_found(write_kitti):
    root = write_kitti({"000000": LINE})
    for folder, old, new in (("image_2", "png", "PNG"), ("label_2", "txt", "TXT")):
        file = root / "training" / folder / f"000000.{old}"
        file.rename(file.with_suffix(f".{new}"))
    (image,) = kitti_to_coco(root, frame_ids(root), KITTI_CLASSES)["images"]
    assert image["file_name"] == "000000.PNG"


def test_an_image_is_turned_as_its_exif_says(write_kitti):
    root = write_kitti({"000000": ""})
    (root / "training/image_2/000000.png").unlink()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (100, 50)).save(root / "training/image_2/000000.jpg", exif=exif)
    (image,) = kitti_to_coco(root, ["000000"], KITTI_CLASSES)["images"]
    assert (image["width"], image["height"]) == (50, 100)


def test_a_label_file_in_another_encoding_is_named(write_kitti):
    root = write_kitti({"000000": ""})
    (root / "training/label_2/000000.txt").write_text(LINE, encoding="utf-16")
    with pytest.raises(ValueError, match="000000.txt is not text in UTF-8"):
        kitti_to_coco(root, ["000000"], KITTI_CLASSES)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_frames_for_a_split(write_kitti, count):
    root = write_kitti({f"{i:06}": "" for i in range(count)})
    with pytest.raises(ValueError, match=f"has {count} frames, too few.*val.txt"):
        read_splits(root)


def test_unknown_class_lists_the_valid_ones(write_kitti):
    root = write_kitti({"000000": ""})
    with pytest.raises(ValueError, match="'car' is no KITTI class; choose from Car, Van, Truck"):
        kitti_to_coco(root, ["000000"], ["car"])


def test_frame_name_must_be_a_number(write_kitti):
    root = write_kitti({"left_1": ""})
    with pytest.raises(ValueError, match="'left_1' .* must be a number"):
        kitti_to_coco(root, ["left_1"], KITTI_CLASSES)


@pytest.mark.skipif(
    not (REAL_DATA / "kitti" / "training").is_dir(),
    reason="needs KITTI's training frames in $DETECTRON2_DATASETS/kitti",
)
def test_genuine_frames_lose_nothing(caplog):
    root = REAL_DATA / "kitti"
    ids = frame_ids(root)
    content = kitti_to_coco(root, ids, KITTI_CLASSES)
    types = [
        line.split(" ")[0]
        for frame in ids
        for line in (root / f"training/label_2/{frame}.txt").read_text().splitlines()
    ]
    annotations = content["annotations"]
    for category, name in enumerate(KITTI_CLASSES, start=1):
        labelled = [a for a in annotations if a["category_id"] == category and not a["iscrowd"]]
        assert len(labelled) == types.count(name)
    ignored = sum(t not in KITTI_CLASSES for t in types)
    assert sum(a["iscrowd"] for a in annotations) == 3 * ignored
    assert caplog.text == ""
