"""What each reader makes of the same two objects, written as programs and people write them.

Every case is two images of 128 x 96 with a red and a blue object in each. "read" cases must give them all, and the
findings that are named; the others must stop with one message.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import detkit
from detkit.data import DetectionDataModule
from detkit.errors import DataError

WIDTH, HEIGHT = 128, 96
RED, BLUE = [20, 20, 60, 60], [70, 30, 110, 80]
GBK = "红色的东西"
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
Files = dict[str, str | bytes]


@pytest.fixture
def open_data(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., DetectionDataModule]:
    """`open_data({"a.xml": text}, images=["a.png"])`: a folder of these, opened."""

    def open_data(files: Files, images: tuple[str, ...] = ("a.png", "b.png"), **options: Any) -> DetectionDataModule:
        for seed, name in enumerate(images):
            write_image(tmp_path / name, WIDTH, HEIGHT, seed=seed)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return detkit.data.open(tmp_path, split=[1, 0, 0], **options)

    return open_data


def check(data: DetectionDataModule, findings: set[str] = frozenset(), images: int = 2) -> None:
    """Every image of the training set has both objects, and its file can be read."""
    train = data.annotations("train")
    assert train is not None and train.counts.tolist() == [2] * images
    for index in range(images):
        fields = train.fields(index)
        names = [data.class_names[label - 1] for label in fields["labels"]]
        assert dict(zip(names, fields["boxes"].round(3).tolist(), strict=True))["blue"] == BLUE
        assert fields["boxes"].round(3).tolist() == [RED, BLUE]
        assert train.image(index).shape == (HEIGHT, WIDTH, 3)
    assert {finding.kind for finding in train.findings} == set(findings)


# -- VOC -------------------------------------------------------------------------------------------

SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"


def xml(
    name: str = "a.png", size: str = SIZE, red: str = "red", head: str = "", difficult: str = "<difficult>0</difficult>"
) -> str:
    items = "".join(
        f"<object><name>{label}</name>{difficult}<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in ((red, RED), ("blue", BLUE))
    )
    return f"{head}<annotation><filename>{name}</filename>{size}{items}</annotation>"


def declared(encoding: str) -> str:
    return f'<?xml version="1.0" encoding="{encoding}"?>'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xef\xbb\xbf" + xml().encode(), set()),
        (xml(head=declared("utf-16")).encode("utf-16"), set()),
        (xml().encode("utf-16"), set()),
        (xml(head=declared("utf-16")).encode("utf-16-le"), set()),
        (xml(head=declared("utf-16")), set()),
        (xml(red=GBK, head=declared("gb2312")).encode("gbk"), set()),
        (xml(red="赤", head=declared("Shift_JIS")).encode("shift_jis"), set()),
        (xml(red="café", head=declared("windows-1252")).encode("cp1252"), set()),
        ("\r\n  " + xml(head=declared("utf-8")), set()),
        (xml() + "\r\n\0\0", set()),
        (xml(size=""), {"no_size"}),
        (xml(size="<size><width/><height>None</height></size>"), {"no_size"}),
        (xml(size="<size><width>-1</width><height>0</height></size>"), {"no_size"}),
        (xml(size=f"<size><width>{WIDTH}.0</width><height>{HEIGHT}.0</height></size>"), set()),
        (xml(size=f"<size><width>{HEIGHT}</width><height>{WIDTH}</height></size>"), {"other_size"}),
        (xml(difficult="<difficult>Unspecified</difficult>"), {"no_difficult"}),
        (xml(difficult="<difficult> False </difficult>"), set()),
        (xml(difficult="<difficult>0.0</difficult>"), set()),
        (xml("C:\\photos\\a.png"), set()),
        (xml("/home/me/other.png"), set()),
        (xml("other.jpg"), set()),
    ],
)
def test_xml(open_data: Callable[..., DetectionDataModule], content: str | bytes, found: set[str]) -> None:
    check(open_data({"a.xml": content, "b.xml": xml("b.png")}), found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml(red=GBK).encode("gbk"), "is not written in UTF-8 .* likely in gb18030; save it as UTF-8"),
        (xml(red=GBK, head=declared("utf-8")).encode("gbk"), "is not written in UTF-8 .* likely in gb18030"),
        (xml(head=declared("klingon")), "declares the encoding 'klingon', which is not known"),
        ("<annotations><image/></annotations>", "the outermost element is <annotations>.*export from CVAT as"),
    ],
)
def test_xml_that_cannot_be_read(
    open_data: Callable[..., DetectionDataModule], content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.xml: {message}"):
        open_data({"a.xml": content, "b.xml": xml("b.png")})


@pytest.mark.parametrize(
    ("files", "images", "found"),
    [
        ({"A.XML": xml("A.PNG"), "B.XML": xml("B.PNG")}, ("A.PNG", "B.PNG"), set()),
        ({"a.xml": xml(), "b.xml": xml("b.png")}, ("A.png", "B.PNG"), set()),
        ({f"{NFC}.xml": xml(f"{NFC}.png"), "b.xml": xml("b.png")}, (f"{NFD}.png", "b.png"), set()),
        ({"1.xml": xml("my%20a.png"), "b.xml": xml("b.png")}, ("my a.png", "b.png"), {"not_annotated"}),
        ({"annotations/a.xml": xml(), "annotations/b.xml": xml("b.png")}, ("images/a.png", "images/b.png"), set()),
        ({"a.xml": xml(), "b.xml": xml("b.png")}, ("a.png", "b.png", "c.png"), {"not_annotated"}),
        ({"xml/1.xml": xml(), "xml/2.xml": xml("C:\\x\\b.png")}, ("images/a.png", "images/B.png"), set()),
        ({"a.xml": xml("b.png"), "b.xml": xml("b.png")}, ("a.png", "b.png"), {"other_name"}),
    ],
)
def test_xml_and_its_image(
    open_data: Callable[..., DetectionDataModule], files: Files, images: tuple[str, ...], found: set[str]
) -> None:
    check(open_data(files, images), found)


def test_images_without_xml_are_taken_as_empty_on_request(open_data: Callable[..., DetectionDataModule]) -> None:
    data = open_data({"a.xml": xml()}, missing_annotations="empty")
    assert data.annotations("train").counts.tolist() == [2, 0]


IDS = {"Annotations/a.xml": xml(), "Annotations/b.xml": xml("b.png")}
JPEG = ("JPEGImages/a.png", "JPEGImages/b.png")


@pytest.mark.parametrize(
    "lines",
    [
        b"\xef\xbb\xbfa\r\nb\r\n",
        "a\nb\n".encode("utf-16"),
        "a\rb\r",
        "a\t\n\n  b  ",
        "a.PNG\nb.png\n",
        "A\nB\n",
        "a.xml\nb.xml\n",
        "./a\n./b.png\n",
        "a 1\nb -1\n",
        "JPEGImages/a.png\nJPEGImages/b.png\n",
        "JPEGImages\\a.png\r\nJPEGImages\\b.png\r\n",
        "data/a.png\ndata/b.png\n",
        "/home/me/VOC2007/JPEGImages/a.png\n/home/me/VOC2007/JPEGImages/b.png\n",
        "C:\\voc\\JPEGImages\\a.png\nC:\\voc\\JPEGImages\\b.png\n",
        "JPEGImages/a.png Annotations/a.xml\nJPEGImages/b.png Annotations/b.xml\n",
    ],
)
def test_lines_of_image_sets(open_data: Callable[..., DetectionDataModule], lines: str | bytes) -> None:
    check(open_data({**IDS, "ImageSets/Main/train.txt": lines, "ImageSets/Main/val.txt": "b\n"}, JPEG))


def test_image_sets_in_other_encodings_and_forms(open_data: Callable[..., DetectionDataModule]) -> None:
    files = {f"Annotations/{NFD}.xml": xml(f"{NFD}.png"), "Annotations/b.xml": xml("b.png")}
    sets: Files = {"ImageSets/Main/train.txt": f"{NFC}\nb\n", "ImageSets/Main/val.txt": "b\n"}
    check(open_data(files | sets, (f"JPEGImages/{NFD}.png", "JPEGImages/b.png")))
    with pytest.raises(DataError, match=r"train\.txt: is not written in UTF-8 .*likely in gb18030"):
        open_data(sets | {"ImageSets/Main/train.txt": f"{GBK}\nb\n".encode("gbk")}, ())


@pytest.mark.parametrize(
    ("sets", "splits"),
    [
        (("Main/trainval", "Main/test"), ["train", "test"]),
        (("Main/Train", "Main/Val"), ["train", "val"]),
        (("train", "val"), ["train", "val"]),
        (("Main/default", "Main/red_default"), ["train"]),
        (("Main/default",), ["train"]),
        ((), ["train"]),
    ],
)
def test_names_of_image_sets(
    open_data: Callable[..., DetectionDataModule], sets: tuple[str, ...], splits: list[str]
) -> None:
    files = {f"ImageSets/{name}.txt": "a\nb\n" for name in sets} or {"ImageSets/Main/.keep": ""}
    data = open_data(IDS | files, JPEG)
    assert [split for split in ("train", "val", "test") if data.annotations(split) is not None][: len(splits)] == splits
    assert len(data.annotations("train")) == 2


def test_image_sets_with_both_names_of_a_split(open_data: Callable[..., DetectionDataModule]) -> None:
    sets: Files = {
        f"ImageSets/Main/{name}.txt": image for name, image in (("train", "a"), ("val", "a"), ("valid", "b"))
    }
    assert open_data(IDS | sets, JPEG).annotations("val").image_ids.tolist() == ["a", "b"]


def test_image_sets_of_which_none_is_for_training(open_data: Callable[..., DetectionDataModule]) -> None:
    files = {f"ImageSets/Main/{name}.txt": "a\nb\n" for name in ("red_train", "red_val")}
    with pytest.raises(DataError, match=r"image sets red_train, red_val, and none is called train .*--data\.train SET"):
        open_data(IDS | files, JPEG)


def test_folders_of_archives(open_data: Callable[..., DetectionDataModule]) -> None:
    sets = {"ImageSets/Main/train.txt": "a\nb\n", "ImageSets/Main/val.txt": "b\n"}
    data = open_data(
        {f"archive/data/my set/{name}": text for name, text in (IDS | sets).items()},
        tuple(f"archive/data/my set/{name}" for name in JPEG),
    )
    check(data)
    assert data.annotations("val").counts.tolist() == [2]


def test_folders_of_the_same_name(open_data: Callable[..., DetectionDataModule]) -> None:
    files, images = {}, []
    for archive, image in (("trainval", "a"), ("test", "b")):
        root = f"{archive}/VOCdevkit/VOC2007"
        files |= {f"{root}/ImageSets/Main/{archive}.txt": image, f"{root}/Annotations/{image}.xml": xml(f"{image}.png")}
        images.append(f"{root}/JPEGImages/{image}.png")
    data = open_data(files, tuple(images))
    assert [data.annotations(split).image_ids.tolist() for split in ("train", "test")] == [["a"], ["b"]]


def test_hidden_files_are_not_read(open_data: Callable[..., DetectionDataModule]) -> None:
    hidden: Files = {f"{name}": b"\0\5\x16\7" for name in ("__MACOSX/a.xml", "._a.xml", ".cache/a.xml", "._all.json")}
    check(open_data({"a.xml": xml(), "b.xml": xml("b.png")} | hidden, ("a.png", "b.png", ".cache/c.png")))


#: Where images lie, and what of them is read: both names of the validation set, and neither what is in no set.
PLACES = {f"{folder}{name}": folder for folder in ("train/", "valid/", "val/", "extra/", "") for name in "ab"}


def check_places(data: DetectionDataModule, files: str) -> None:
    train, val = data.annotations("train"), data.annotations("val")
    assert train.files.tolist() == ["train/a.png", "train/b.png"]
    assert sorted(val.files) == ["val/a.png", "val/b.png", "valid/a.png", "valid/b.png"]
    [found] = [*train.findings, *val.findings]
    assert found.kind == "in_no_set" and found.count == 4
    assert found.message == f"4 {files}: left out"


def test_folders_of_xml_that_are_sets_or_none(open_data: Callable[..., DetectionDataModule]) -> None:
    files = {f"{place}.xml": xml(f"{place[-1]}.png") for place in PLACES}
    data = open_data(files, tuple(f"{place}.png" for place in PLACES))
    check_places(data, "annotation files are in no set, such as a.xml")


# -- COCO ------------------------------------------------------------------------------------------


def coco(change: Callable[[dict[str, Any]], Any] = lambda content: None) -> str:
    content = {
        "images": [
            {"id": i, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for i, n in ((1, "a"), (2, "b"))
        ],
        "annotations": [
            {"id": i, "image_id": i // 2 + 1, "category_id": i % 2 + 1, "bbox": box, "area": 9, "iscrowd": 0}
            for i, box in enumerate([[20, 20, 40, 40], [70, 30, 40, 50]] * 2)
        ],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }
    change(content)
    return json.dumps(content, ensure_ascii=False)


def each(key: str, **values: Any) -> str:
    """With these values in every row of a list; a function is given the row."""

    def change(content: dict[str, Any]) -> None:
        for row in content[key]:
            row |= {name: value(row) if callable(value) else value for name, value in values.items()}

    return coco(change)


def outline(row: dict[str, Any]) -> list[int]:
    x, y, width, height = row["bbox"] or [20, 20, 40, 40]
    return [x, y, x + width, y, x + width, y + height]


def no_box(nested: bool) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            points = outline(row)
            row |= {"bbox": [], "segmentation": [points] if nested else points}

    return change


def strings(content: dict[str, Any]) -> None:
    """Every number of the annotations as a string."""
    for row in content["annotations"]:
        row |= {key: str(row[key]) for key in ("area", "iscrowd", "category_id")} | {
            "bbox": list(map(str, row["bbox"]))
        }
    for row in content["categories"]:
        row["id"] = str(row["id"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        *((coco().encode(encoding), set()) for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32")),
        (each("images", width="128", height="96.0"), set()),
        (each("images", width=None, height=-1), {"no_size"}),
        (each("images", width=64, height=48), {"other_size"}),
        (each("annotations", image_id=lambda row: str(row["image_id"])), {"id_type"}),
        (each("annotations", image_id=lambda row: float(row["image_id"])), set()),
        (coco(lambda content: content["images"][0].update(id="1")), {"id_type"}),
        (coco(strings), {"type", "flag"}),
        (each("annotations", iscrowd="False", area=None), {"flag"}),
        (each("annotations", iscrowd=None), set()),
        (each("annotations", ignore=1), {"ignore"}),
        (coco(no_box(nested=True)), {"type", "from_outline"}),
        (coco(no_box(nested=False)), {"type", "from_outline"}),
        (coco(lambda content: content["images"].append(content["images"][0])), {"duplicate"}),
        (coco(lambda content: content["categories"].append(content["categories"][0])), {"duplicate"}),
        (each("images", file_name=lambda row: "./" + row["file_name"]), set()),
        (each("images", file_name=lambda row: row["file_name"][0]), set()),
        (each("images", file_name=lambda row: "/home/me/x/" + row["file_name"]), {"other_name"}),
        (each("images", file_name=lambda row: "C:\\x\\" + row["file_name"]), {"other_name"}),
        (each("images", file_name=lambda row: "https://host/x/" + row["file_name"]), {"other_name"}),
        (each("images", file_name=lambda row: row["file_name"].upper()), {"other_name"}),
    ],
)
def test_coco(open_data: Callable[..., DetectionDataModule], content: str | bytes, found: set[str]) -> None:
    check(open_data({"all.JSON": content}), found)


@pytest.mark.parametrize("name", [f"{NFC}.png", "caf%C3%A9.png"])
def test_names_in_coco(open_data: Callable[..., DetectionDataModule], name: str) -> None:
    content = coco(lambda content: content["images"][0].update(file_name=name))
    check(open_data({"all.json": content}, (f"{NFD}.png", "b.png")), {"other_name"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco().replace("red", GBK).encode("gbk"), "is not written in UTF-8 .*likely in gb18030"),
        (each("annotations", iscrowd="maybe"), "iscrowd is 'maybe'; it must be 0 or 1"),
        (each("annotations", iscrowd=2), "iscrowd is 2; it must be 0 or 1"),
        (each("annotations", category_id="red"), "category_id: expected 'int . float', got 'str'"),
        (each("annotations", bbox=["a", "b", "c", "d"]), r"bbox\[0\]: expected 'float', got 'str'"),
        (coco(lambda content: content.pop("categories")), "missing required field 'categories'"),
        (coco(lambda content: content["categories"].append({"id": 1, "name": "x"})), "category id 1 is given twice"),
        (coco(lambda content: content["images"].append({"id": 1, "file_name": "b.png"})), "image id 1 is given twice"),
        (each("images", file_name="../../x.png"), "leaves the image folder; refused"),
        (coco(lambda content: content["images"][0].update(id=2**70)), "image 0 .*: id: expected 'int' <="),
    ],
)
def test_coco_that_cannot_be_read(
    open_data: Callable[..., DetectionDataModule], content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=rf"all\.json: .*{message}"):
        open_data({"all.json": content}).annotations("train")


def test_images_without_annotations_are_all_predicted_on(open_data: Callable[..., DetectionDataModule]) -> None:
    data = open_data({"all.json": coco(lambda content: content.pop("annotations"))}, num_workers=0)
    data.setup("predict")
    assert sum(map(len, data.predict_dataloader())) == 2
    for stage in ("fit", "test"):
        with pytest.raises(DataError, match="is annotated, so there is nothing to compare with"):
            data.setup(stage)


def test_instances_among_other_files_of_coco(open_data: Callable[..., DetectionDataModule]) -> None:
    files = {
        f"annotations/{kind}_{split}2017.json": coco()
        for kind in ("captions", "instances", "person_keypoints")
        for split in ("train", "val")
    }
    data = open_data(files, tuple(f"{split}2017/{name}.png" for split in ("train", "val") for name in "ab"))
    assert data.sources["train"] == "annotations/instances_train2017.json"
    check(data)


# -- YOLO ------------------------------------------------------------------------------------------

ROWS = "".join(
    f"{number} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}\n"
    for number, (x1, y1, x2, y2) in enumerate((RED, BLUE))
)
YAML = "train: images\nnames: [red, blue]\n"
LABELS = {"labels/a.txt": ROWS, "labels/b.txt": ROWS}
IMAGES = ("images/a.png", "images/b.png")


@pytest.mark.parametrize(
    "rows",
    [
        b"\xef\xbb\xbf" + ROWS.encode(),
        ROWS.encode("utf-16"),
        ROWS.replace("\n", "\r\n\r\n"),
        ROWS.replace(" ", "\t"),
        ROWS.replace(" ", ","),
        ROWS.replace(" ", ", "),
        ROWS.replace("0 ", "0.0 ", 1),
        "red " + ROWS[2:],
    ],
)
def test_label_files(open_data: Callable[..., DetectionDataModule], rows: str | bytes) -> None:
    check(open_data({"data.yaml": YAML, **LABELS, "labels/a.txt": rows}, IMAGES))


@pytest.mark.parametrize(
    ("image", "label", "found"),
    [
        ("images/a.png", "labels/A.TXT", set()),
        (f"images/{NFC}.png", f"labels/{NFD}.txt", set()),
        ("images/a.png", "labels/a.png.txt", set()),
        ("images/a.png", "images/a.txt", set()),
        ("images/a.png", "other/place/a.txt", set()),
    ],
)
def test_names_of_label_files(
    open_data: Callable[..., DetectionDataModule], image: str, label: str, found: set[str]
) -> None:
    files = {"data.yaml": YAML, label: ROWS, "labels/b.txt": ROWS}
    check(open_data(files, (image, "images/b.png")), found)


def test_label_files_without_images_are_told(open_data: Callable[..., DetectionDataModule]) -> None:
    check(open_data({"data.yaml": YAML, **LABELS, "labels/z.txt": ROWS, "notes.txt": "hello"}, IMAGES), {"no_image"})


def test_folders_of_label_files_that_are_sets_or_none(open_data: Callable[..., DetectionDataModule]) -> None:
    files = {f"{place}.txt": ROWS for place in PLACES} | {"classes.txt": "red\nblue"}
    data = open_data(files, tuple(f"{place}.png" for place in PLACES))
    check_places(data, "images with a label file are in no set, such as a.png")


def test_keypoints_after_a_box_are_no_outline(open_data: Callable[..., DetectionDataModule]) -> None:
    rows = "".join(f"{row} 0.1 0.1 2 0.9 0.9 1\n" for row in ROWS.splitlines())
    files = {"data.yaml": YAML + "kpt_shape: [2, 3]\n", "labels/a.txt": rows, "labels/b.txt": rows}
    check(open_data(files, IMAGES))


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        (b"\xef\xbb\xbf" + YAML.encode(), ["red", "blue"], set()),
        (YAML.encode("utf-16"), ["red", "blue"], set()),
        (YAML.replace("\n", "\r\n"), ["red", "blue"], set()),
        ("names: {'0': red, '1': blue}\ntrain: images\nval: ~\n", ["red", "blue"], set()),
        ("names: red, blue\ntrain: C:\\data\\images\n", ["red", "blue"], {"other_name"}),
        ('{"names": ["red", "blue"], "train": "images", "val": ""}', ["red", "blue"], set()),
        ("names: [no, blue]\n", ["no", "blue"], set()),
        ("names:\n- 007\n- blue\n", ["007", "blue"], set()),
    ],
)
def test_descriptions(
    open_data: Callable[..., DetectionDataModule], text: str | bytes, names: list[str], found: set[str]
) -> None:
    data = open_data({"data.yaml": text, **LABELS}, IMAGES)
    assert data.class_names == names
    check(data, found)


def test_a_description_in_a_folder_beside_the_images(open_data: Callable[..., DetectionDataModule]) -> None:
    check(open_data({"config/data.yaml": YAML.replace("images", "../images"), **LABELS}, IMAGES))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"classes.txt": "red\n\nblue\n"}, r"classes\.txt: line 2 is empty, so the numbers of the classes are unclear"),
        ({"classes.txt": f"{GBK}\nblue".encode("gbk")}, r"classes\.txt: is not written in UTF-8 .*gb18030"),
        ({"a/classes.txt": "red\nblue", "b/classes.txt": "blue\nred"}, "name other classes; make them the same"),
        ({"data.yaml": "train: ../train/images\nnames: [red, blue]"}, "'../train/images' is not there"),
        ({"data.yaml": "train: labels\nnames: [red, blue]"}, "'labels' has no images"),
        ({"data.yaml": YAML, "images/a.jpg": b"not read"}, r"a\.txt: may be of .*a\.jpg or of .*a\.png; remove one"),
        ({"data.yaml": YAML, "labels/a.txt": "0 0,5 0,5 0,2 0,2"}, "line 1: .* is not a class number and shares"),
    ],
)
def test_yolo_that_cannot_be_read(open_data: Callable[..., DetectionDataModule], files: Files, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(LABELS | files, IMAGES).annotations("train")


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_exif_decides_for_shares_too(tmp_path: Path, write_image: Callable[..., Path], exif: str) -> None:
    from PIL import Image

    orientation = Image.Exif()
    orientation[0x0112] = 6
    write_image(tmp_path / "a.jpg", 40, 20, exif=orientation)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("red\n")
    train = detkit.data.open(tmp_path, split=[1, 0, 0], exif=exif).annotations("train")
    assert train.boxes.tolist() == ([[5, 10, 15, 30]] if exif == "apply" else [[10, 5, 30, 15]])
    assert train.image(0).shape == ((40, 20, 3) if exif == "apply" else (20, 40, 3))


# -- CSV -------------------------------------------------------------------------------------------

HEAD = "image,xmin,ymin,xmax,ymax,class\n"
TABLE = HEAD + "".join(f"{n}.png,20,20,60,60,red\n{n}.png,70,30,110,80,blue\n" for n in "ab")
SIDES = "".join(f"{n}.png,20,20,40,40,red\n{n}.png,70,30,40,50,blue\n" for n in "ab")
CENTRES = "".join(f"{n}.png,40,40,40,40,red\n{n}.png,90,55,40,50,blue\n" for n in "ab")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TABLE.replace("\n", "\r"), set()),
        (TABLE.replace("\n", "\r\n").encode("utf-16"), set()),
        (TABLE.replace(",", ", "), set()),
        (TABLE.replace(",", ";").replace("20", "20,0"), set()),
        ("sep=;\n" + TABLE.replace(",", ";"), set()),
        ("# exported today\n\n" + TABLE, set()),
        ("a.png,,,,,\n" + TABLE.removeprefix(HEAD), set()),
        (TABLE.replace(HEAD, HEAD.upper()), set()),
        ("image,x,y,width,height,label\n" + SIDES, set()),
        ("Image Name,x_center,y_center,width,height,label\n" + CENTRES, set()),
        (TABLE.replace("a.png", "/home/me/photos/a.png"), {"other_name"}),
        (TABLE.replace("b.png", "C:\\photos\\B.PNG"), {"other_name"}),
        (TABLE + "b.png,,,,,blue\n", {"no_box"}),
        (TABLE + "b.png,NaN,NaN,NaN,NaN,NaN\n", set()),
    ],
)
def test_tables(open_data: Callable[..., DetectionDataModule], text: str | bytes, found: set[str]) -> None:
    check(open_data({"T.CSV": text}), found)


def test_a_name_without_suffix_that_two_images_have(open_data: Callable[..., DetectionDataModule]) -> None:
    with pytest.raises(DataError, match=r"the image 'a' may be a\.jpg or a\.png in .*; write its folder and suffix"):
        open_data({"table.csv": TABLE.replace("a.png", "a")}, ("a.png", "a.jpg", "b.png"))


def test_a_size_in_a_table_that_is_wrong(open_data: Callable[..., DetectionDataModule]) -> None:
    rows = [f"{line},{'width,height' if line + chr(10) == HEAD else '64,48'}" for line in TABLE.splitlines()]
    check(open_data({"table.csv": "\n".join(rows)}), {"other_size"})


def test_the_line_of_an_error_counts_comments(open_data: Callable[..., DetectionDataModule]) -> None:
    with pytest.raises(DataError, match=r"table\.csv: line 4: '20, x, 60, 60' are not the four numbers"):
        open_data({"table.csv": "# one\n\n" + HEAD + "a.png,20,x,60,60,red\n"})
