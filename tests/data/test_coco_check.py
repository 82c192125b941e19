import copy
import math

import pytest

from aid_d2.data.coco_check import check_coco


def _coco():
    """Four images of 100x50 with an object each, without any fault."""
    boxes = [[1, 2, 30, 40], [10, 5, 20, 20], [50, 10, 49, 30], [0, 0, 100, 50]]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": 9.5, "iscrowd": 0}
        for i, box in enumerate(boxes, start=1)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 50} for i in range(1, 5)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}


def _changed(kind, change, row=0):
    coco = _coco()
    change(coco[kind][row])
    return coco


def test_a_sound_file_stays_the_same_object():
    coco = _coco()
    mended, problems = check_coco(coco)
    assert mended is coco and problems == []


@pytest.mark.parametrize(
    "kind, key, value, mended",
    [
        ("images", "width", "100", 100),
        ("images", "height", 50.0, 50),
        ("annotations", "iscrowd", None, 0),
        ("annotations", "area", None, 1200.0),
        ("annotations", "area", math.nan, 1200.0),
        ("annotations", "category_id", "1", 1),
        ("annotations", "image_id", 1.0, 1),
    ],
)
def test_harmless_values_are_mended_and_told(kind, key, value, mended):
    coco = _changed(kind, lambda row: row.update({key: value}))
    before = copy.deepcopy(coco)
    result, (problem,) = check_coco(coco)
    assert result[kind][0] == {**before[kind][0], key: mended}
    assert type(result[kind][0][key]) is type(mended)
    assert not problem.fatal and problem.count == 1 and key in problem.kind
    assert result[kind][1:] == before[kind][1:]
    assert repr(coco) == repr(before), "the caller's annotations stay as they are"


def test_missing_area_and_iscrowd_are_filled_in():
    coco = _coco()
    for row in coco["annotations"]:
        del row["area"], row["iscrowd"]
    mended, problems = check_coco(coco)
    assert [row["area"] for row in mended["annotations"]] == [1200, 400, 1470, 5000]
    assert {row["iscrowd"] for row in mended["annotations"]} == {0}
    assert [p.count for p in problems] == [4, 4] and not any(p.fatal for p in problems)


def test_string_ids_become_integers_that_fit_together():
    coco = _coco()
    coco["images"][1]["id"] = coco["annotations"][1]["image_id"] = "frame-b"
    coco["categories"].append({"id": "truck", "name": "truck"})
    coco["annotations"][2]["category_id"] = "truck"
    mended, problems = check_coco(coco)
    assert not any(p.fatal for p in problems)
    ids = [image["id"] for image in mended["images"]]
    assert len(set(ids)) == 4 and all(type(i) is int for i in ids)
    assert [row["image_id"] for row in mended["annotations"]] == ids
    assert mended["annotations"][2]["category_id"] == mended["categories"][1]["id"] != 1


def test_annotation_id_0_is_numbered_anew():
    # COCOeval takes a match with annotation 0 for none.
    mended, (problem,) = check_coco(_changed("annotations", lambda row: row.update(id=0)))
    ids = [row["id"] for row in mended["annotations"]]
    assert min(ids) > 0 and len(set(ids)) == 4 and not problem.fatal


@pytest.mark.parametrize(
    "box, kind",
    [
        ([math.nan, 1, 2, 3], "not finite"),
        ([1, 1, math.inf, 3], "not finite"),
        ([1, 1, 0, 3], "without an area"),
        ([1, 1, 5, -3], "without an area"),
        ([100, 1, 5, 3], "outside of the image"),
        ([-9, 1, 9, 3], "outside of the image"),
    ],
)
def test_useless_boxes_are_left_out_and_counted(box, kind):
    coco = _changed("annotations", lambda row: row.update(bbox=box), row=2)
    mended, (problem,) = check_coco(coco)
    assert [row["id"] for row in mended["annotations"]] == [1, 2, 4]
    assert kind in problem.kind and problem.count == 1 and not problem.fatal
    assert "id 3 (3.jpg)" in str(problem)


def test_a_box_partly_outside_stays():
    coco = _changed("annotations", lambda row: row.update(bbox=[-5, -5, 20, 200]))
    assert check_coco(coco) == (coco, [])


def test_annotations_of_unlisted_images_are_left_out():
    coco = _changed("annotations", lambda row: row.update(image_id=77), row=1)
    mended, (problem,) = check_coco(coco)
    assert len(mended["annotations"]) == 3 and "not listed" in problem.kind and not problem.fatal


def test_a_file_of_useless_boxes_alone_is_refused():
    coco = _coco()
    for row in coco["annotations"]:
        row["image_id"] = 77
    assert any(p.fatal and "none is left" in p.kind for p in check_coco(coco)[1])


@pytest.mark.parametrize(
    "kind, change, complaint",
    [
        ("annotations", lambda row: row.pop("bbox"), 'without "bbox"'),
        ("annotations", lambda row: row.pop("id"), 'without "id"'),
        ("annotations", lambda row: row.pop("image_id"), 'without "image_id"'),
        ("images", lambda row: row.pop("file_name"), 'without "file_name"'),
        ("images", lambda row: row.pop("height"), 'without "height"'),
        ("images", lambda row: row.update(width="wide"), '"width" is no positive integer'),
        ("images", lambda row: row.update(height=0), '"height" is no positive integer'),
        ("images", lambda row: row.update(file_name=3), '"file_name" is no text'),
        ("annotations", lambda row: row.update(bbox=[1, 2, 3]), "not four numbers"),
        ("annotations", lambda row: row.update(bbox=["1", 2, 3, 4]), "not four numbers"),
        ("annotations", lambda row: row.update(bbox=None), "not four numbers"),
        ("annotations", lambda row: row.update(category_id=8), '"category_id" that is not in'),
        ("annotations", lambda row: row.update(id=2), "with the id of another"),
        ("images", lambda row: row.update(id=2), "with the id of another"),
        ("annotations", lambda row: row.update(iscrowd="no"), '"iscrowd" is neither 0 nor 1'),
        ("annotations", lambda row: row.update(segmentation=7), '"segmentation" is neither'),
        ("annotations", lambda row: row.update(keypoints=[1, 2]), '"keypoints" are not triples'),
    ],
)
def test_what_cannot_be_meant_is_fatal(kind, change, complaint):
    problems = [p for p in check_coco(_changed(kind, change))[1] if p.fatal]
    assert len(problems) == 1 and complaint in problems[0].kind and problems[0].count == 1


def test_records_that_are_no_objects_are_fatal():
    coco = _coco()
    coco["annotations"][1] = "annotation"
    (problem,) = check_coco(coco)[1]
    assert problem.fatal and str(problem) == (
        "annotations that are not objects: 1 (annotations[1])"
    )


def test_a_repeated_category_id_is_fatal():
    coco = _coco()
    coco["categories"].append({"id": 1, "name": "b"})
    assert any(
        p.fatal and p.kind == "categories with the id of another" for p in check_coco(coco)[1]
    )


def test_corners_instead_of_width_and_height_are_fatal():
    coco = _coco()
    for row in coco["annotations"]:
        row["bbox"] = [60, 30, 90, 45]
    assert any(p.fatal and "[x1, y1, x2, y2]" in p.kind for p in check_coco(coco)[1])


def test_shares_of_the_image_are_fatal():
    coco = _coco()
    for row in coco["annotations"]:
        row["bbox"] = [0.1, 0.2, 0.5, 0.25]
    assert any(p.fatal and "0..1" in p.kind for p in check_coco(coco)[1])


def test_all_problems_are_told_at_once_with_their_first_places():
    coco = _coco()
    for row in coco["annotations"]:
        row["bbox"] = [1, 2, 3]
    del coco["images"][3]["height"]
    problems = [str(p) for p in check_coco(coco)[1]]
    assert problems == [
        'images without "height": 1 (id 4 (4.jpg))',
        'annotations whose "bbox" is not four numbers: 4 '
        "(id 1 (1.jpg), id 2 (2.jpg), id 3 (3.jpg), ...)",
    ]


def test_a_repeated_category_name_is_fatal():
    coco = _coco()
    coco["categories"].append({"id": 2, "name": "a"})
    _, (problem,) = check_coco(coco)
    assert problem.fatal and "name of another" in problem.kind
