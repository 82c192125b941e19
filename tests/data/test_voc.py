import pytest
from PIL import Image

from aid_d2.data.voc import read_voc


def _object(name="car", box=(1, 1, 20, 10), extra=""):
    tags = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


@pytest.fixture
def write(tmp_path):
    """Writes one image of 60x40 and its xml; the standard layout unless the folders are flat."""

    def make(stem, *objects, image=".jpg", size=True, xml=None, flat=False):
        folders = [tmp_path if flat else tmp_path / f for f in ("Annotations", "JPEGImages")]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        if image:
            Image.new("RGB", (60, 40)).save(folders[1] / f"{stem}{image}")
        sizes = "<size><width>60</width><height>40</height></size>" if size else ""
        content = f"<annotation><filename>{stem}{image}</filename>{sizes}{''.join(objects)}"
        (folders[0] / f"{stem}.xml").write_text(xml or content + "</annotation>")
        return tmp_path

    return make


@pytest.mark.parametrize("flat", [True, False])
def test_png_and_jpeg_of_both_layouts(write, flat):
    write("a", _object("car"), flat=flat)
    root = write("b", _object("bus", extra="<difficult>1</difficult>"), image=".PNG", flat=flat)
    coco, image_dir, problems = read_voc(root)
    assert problems == [] and image_dir == (root if flat else root / "JPEGImages")
    assert [c["name"] for c in coco["categories"]] == ["bus", "car"]
    assert [(i["file_name"], i["width"], i["height"]) for i in coco["images"]] == [
        ("a.jpg", 60, 40),
        ("b.PNG", 60, 40),
    ]
    assert [(a["category_id"], a["iscrowd"]) for a in coco["annotations"]] == [(2, 0), (1, 1)]


def test_boxes_count_pixels_from_1_and_include_the_last(write):
    # The box of all pixels of a 60x40 image is 1, 1, 60, 40 in VOC's development kit.
    coco, _, _ = read_voc(write("a", _object(box=(1, 1, 60, 40)), _object(box=(11, 6, 20, 10))))
    boxes = [a["bbox"] for a in coco["annotations"]]
    assert boxes == [[0, 0, 60, 40], [10, 5, 10, 5]]
    assert [a["area"] for a in coco["annotations"]] == [2400, 50]


def test_parts_of_an_object_are_no_objects(write):
    part = "<part><name>wheel</name><bndbox><xmin>3</xmin></bndbox></part>"
    coco, _, problems = read_voc(write("a", _object("car", extra=part)))
    assert problems == [] and [c["name"] for c in coco["categories"]] == ["car"]


def test_a_split_lists_its_images(write):
    for stem in ("a", "b", "c", "my photo"):
        root = write(stem, _object())
    (root / "ImageSets" / "Main").mkdir(parents=True)
    # As VOC's lists for one class, and with a line twice.
    (root / "ImageSets" / "Main" / "train.txt").write_text("c  1\na -1\n\nc  1\nmy photo\n")
    coco, _, problems = read_voc(root, "train")
    assert [i["file_name"] for i in coco["images"]] == [
        "c.jpg",
        "a.jpg",
        "my photo.jpg",
    ] and problems == []
    with pytest.raises(FileNotFoundError, match="val.txt .*split 'val'.*Leave the split out"):
        read_voc(root, "val")


def test_the_size_comes_from_the_image_where_the_xml_has_none(write):
    coco, _, problems = read_voc(write("a", _object(), size=False))
    assert (coco["images"][0]["width"], coco["images"][0]["height"]) == (60, 40)
    assert problems == []


def test_faults_are_counted_by_kind_and_name_their_files(write):
    write("a", _object(box=("x", 1, 2, 3)))
    write("b", xml="<annotation><object>")
    write("c", _object(), image="")
    write("d", "<object><name>car</name></object>")
    root = write("e", _object(name=""))
    coco, _, problems = read_voc(root)
    assert coco["images"] == [] and coco["annotations"] == []
    assert sorted(map(str, problems)) == [
        "files that are not xml: 1 (b.xml)",
        "xml files in which <xmin> is no number: 1 (a.xml)",
        "xml files with an object without <bndbox>: 1 (d.xml)",
        "xml files with an object without <name>: 1 (e.xml)",
        "xml files without an image of the same name: 1 (c.xml)",
    ]


def test_a_folder_without_annotations_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"No VOC annotations {tmp_path}"):
        read_voc(tmp_path)


@pytest.mark.parametrize("tag", ["<difficult/>", "<difficult>Unspecified</difficult>"])
def test_what_is_not_said_to_be_difficult_is_not(write, tag):
    coco, _, problems = read_voc(write("a", _object(extra=tag)))
    assert problems == [] and [a["iscrowd"] for a in coco["annotations"]] == [0]
