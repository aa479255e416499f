from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detkit.data import VOC
from detkit.data.voc_files import read_image_set
from detkit.data.voc_xml import VOCObject, format_annotation, parse_annotation
from detkit.errors import ConfigError, DataError

CAT = VOCObject("cat", (1, 2, 20, 22), False)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_reads_classes_boxes_and_flags(two_cats: Path) -> None:
    data = VOC(str(two_cats))
    assert (data.class_names, data.num_classes, data.category_ids) == (["cat", "dog"], 2, [1, 2])
    train = data.annotations("train")
    assert train is not None and len(train) == 2
    assert train.image_id(0) == "a" and train.path(0) == str(two_cats / "JPEGImages" / "a.png")
    fields = train.fields(0)
    np.testing.assert_array_equal(fields["boxes"], np.array([[1, 2, 20, 22], [5, 5, 35, 30]], np.float32))
    np.testing.assert_array_equal(fields["labels"], [1, 2])
    np.testing.assert_array_equal(fields["difficult"], [False, True])
    np.testing.assert_array_equal(fields["area"], [380, 750])
    assert fields["boxes"].dtype == np.float32 and fields["labels"].dtype == np.int64


@given(
    st.lists(
        st.tuples(
            st.text("abc<&>\"' é", min_size=1).map(str.strip).filter(bool),
            st.tuples(*[st.floats(0, 500, width=32)] * 4),
            st.booleans(),
        ),
        max_size=4,
    )
)
def test_writing_and_reading_is_the_identity(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    objects = [VOCObject(*row) for row in rows]
    file = tmp_path_factory.mktemp("xml") / "x.xml"
    file.write_text(format_annotation("x.jpg", 500, 400, objects), encoding="utf-8")
    image = parse_annotation(str(file))
    assert (image.width, image.height, image.filename) == (500, 400, "x.jpg")
    assert len(image.objects) == len(objects)
    for read, written in zip(image.objects, objects, strict=True):
        x1, y1, x2, y2 = read.box
        assert (read.name, read.difficult) == (written.name, written.difficult)
        np.testing.assert_allclose((x1 - 1, y1 - 1, x2, y2), written.box, atol=1e-9)


def test_several_years_and_the_folder_around(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    make_voc({"000001": [CAT]}, {"trainval": ["000001"]}, "VOCdevkit/VOC2007")
    make_voc({"2012_1": [CAT], "2012_2": []}, {"trainval": ["2012_1", "2012_2"]}, "VOCdevkit/VOC2012")
    both = "2007/trainval+2012/trainval"
    for path in (tmp_path, tmp_path / "VOCdevkit"):
        data = VOC(str(path), train=both, val=None)
        train = data.annotations("train")
        assert train is not None
        assert train.image_ids.tolist() == ["000001", "2012_1", "2012_2"]
        assert all(Path(train.path(index)).is_file() for index in range(3))
    one = VOC(str(tmp_path / "VOCdevkit" / "VOC2007"), train="2007/trainval", val=None)
    assert one.annotations("train").image_ids.tolist() == ["000001"]
    with pytest.raises(DataError, match=r"several folders \(2007, 2012\); write for example '2007/trainval'"):
        VOC(str(tmp_path), train="trainval", val=None, test=None)
    with pytest.raises(DataError, match="no folder '2010'"):
        VOC(str(tmp_path), train="2010/trainval", val=None)


def test_test_set_falls_back_on_validation(two_cats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr("detkit.data.datamodule.rank_zero_info", messages.append)
    data = VOC(str(two_cats), test=None)
    assert data.annotations("test") is data.annotations("val")
    assert messages == ["no test set is named: testing on the validation set"]


def test_no_validation_set(two_cats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = VOC(str(two_cats), val=None, test=None)
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match=r"VOC: there is no test set; name one, .* by --data\.test SET"):
        data.test_dataloader()
    data.trainer = SimpleNamespace(is_global_zero=True, lightning_module=None)
    with pytest.raises(DataError, match="there is no test set"):
        data.setup("test")
    assert capsys.readouterr().out == ""  # no table of nothing
    data.setup("fit")
    assert "train" in capsys.readouterr().out


def test_flag_column_and_blank_lines(two_cats: Path) -> None:
    file = two_cats / "ImageSets" / "Main" / "cat_train.txt"
    file.write_text("a  1\n\nb -1\nwith space  0\r\n")
    assert read_image_set(str(two_cats), "cat_train") == ["a", "b", "with space"]


@pytest.mark.parametrize(
    ("old", "new", "kind", "boxes"),
    [
        ("<xmax>20<", "<xmax>2<", "degenerate", 1),
        ("<xmax>20<", "<xmax>1.0<", "degenerate", 1),
        ("<xmax>20<", "<xmax>-7<", "inverted", 1),
        ("<xmax>20<", "<xmax>nan<", "not_finite", 1),
        ("<xmax>20<", "<xmax>45<", "clipped", 2),
        ("<xmin>2<", "<xmin>41<", "inverted", 1),
        ("<xmin>2</xmin><ymin>3</ymin><xmax>20<", "<xmin>50</xmin><ymin>3</ymin><xmax>70<", "outside", 1),
        ("<difficult>0</difficult>", "", "no_difficult", 2),
        ("<difficult>0<", "<difficult>Unspecified<", "no_difficult", 2),
        ("<xmin>2<", "<xmin>0<", "zero_based", 2),
    ],
)
def test_what_is_wrong_with_a_box_becomes_a_finding(two_cats: Path, old: str, new: str, kind: str, boxes: int) -> None:
    edit(two_cats / "Annotations" / "a.xml", old, new)
    train = VOC(str(two_cats)).annotations("train")
    assert train.counts[0] == boxes
    finding = next(each for each in train.findings if each.kind == kind)
    assert finding.file.endswith("a.xml") and finding.object == 1
    fields = train.fields(0)
    assert (fields["boxes"] >= 0).all() and (fields["boxes"] <= [40, 30, 40, 30]).all()
    assert not fields["difficult"][: boxes - 1].any()


def test_float_coordinates(two_cats: Path) -> None:
    edit(two_cats / "Annotations" / "a.xml", "<ymin>3<", "<ymin>5.70000076293945<")
    assert VOC(str(two_cats)).annotations("train").boxes[0, 1] == pytest.approx(4.7)


def test_missing_size_is_read_from_the_image(two_cats: Path) -> None:
    edit(two_cats / "Annotations" / "a.xml", "<width>40<", "<width>0<")
    train = VOC(str(two_cats)).annotations("train")
    assert (train.widths[0], train.heights[0]) == (40, 30)
    assert [finding.kind for finding in train.findings] == ["no_size"]


def test_parts_of_a_person_are_no_objects(two_cats: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    edit(two_cats / "Annotations" / "a.xml", "\t</object>", f"{part}</object>")
    data = VOC(str(two_cats))
    assert data.class_names == ["cat", "dog"] and data.annotations("train").counts[0] == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", "not well-formed XML"),
        ("<annotation>", "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation>", "DOCTYPE"),
        (
            "<annotation>",
            "<?xml version='1.0' encoding='bogus'?><annotation>",
            "declares the encoding",
        ),
        ("<name>cat</name>", "", "object 1: <name> is missing"),
        ("<xmin>2<", "<xmin>two<", "object 1: <xmin> is 'two'"),
        ("<ymin>3</ymin>", "", "object 1: <ymin> is ''"),
        ("<width>40<", "<width>1e300<", "image 'a': its size is 1000000000"),
        ("<width>40<", "<width>3000000000<", "image 'a': its size is 3000000000 x 30 pixels"),
        (
            "<annotation>",
            "<?xml version='1.0' encoding='no-such'?><annotation>",
            "declares the encoding",
        ),
        ("<annotation>", "<?xml version='1.0' encoding='hex'?><annotation>", "declares the encoding"),
        ("<annotation>", "\0<annotation>", "not well-formed XML"),
        ("<object>", "<x>" * 50_000, "not well-formed XML"),
    ],
)
def test_bad_annotation_file(two_cats: Path, old: str, new: str, message: str) -> None:
    edit(two_cats / "Annotations" / "a.xml", old, new)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        VOC(str(two_cats))
    assert "a.xml" in str(error.value)


def test_external_entity_is_not_read(two_cats: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("cat")
    file = two_cats / "Annotations" / "a.xml"
    doctype = f"<!DOCTYPE annotation [<!ENTITY e SYSTEM 'file://{secret}'>]>"
    file.write_bytes((doctype + file.read_text().replace(">cat<", ">&e;<")).encode("utf-16"))
    with pytest.raises(DataError, match="DOCTYPE"):
        VOC(str(two_cats))


def test_given_classes_keep_their_order(two_cats: Path) -> None:
    data = VOC(str(two_cats), class_names=["dog", "cat", "cow"])
    assert data.annotations("train").fields(0)["labels"].tolist() == [2, 1]
    assert data.num_classes == 3


def test_class_of_the_validation_set_alone_counts_and_warns(make_voc: Callable[..., Path]) -> None:
    dog = VOCObject("dog", (1, 1, 9, 9), False)
    data = VOC(str(make_voc({"a": [CAT], "b": [dog]}, {"train": ["a"], "val": ["b"]})), test=None)
    assert data.class_names == ["cat", "dog"]
    assert "train: no box of dog" in data.summary().warnings[0]


def test_other_classes_are_left_out_on_request(make_voc: Callable[..., Path]) -> None:
    box = (1.0, 2.0, 20.0, 22.0)
    cat, dog, cow = (VOCObject(name, box, False) for name in ("cat", "dog", "cow"))
    path = str(make_voc({"a": [dog, cat, cow], "b": [dog]}))
    sets = {"val": None, "test": None}
    with pytest.raises(
        DataError, match=r"a\.xml: object 1: 3 of 4 objects .*: 'dog', 'cow'; it has 'cat'.*other_classes: drop"
    ):
        VOC(path, **sets, class_names=["cat"]).annotations("train")
    data = VOC(path, **sets, class_names=["cat"], other_classes="drop")
    train = data.annotations("train")
    assert train is not None and train.counts.tolist() == [1, 0] and train.labels.tolist() == [1]
    split = data.summary().splits["train"]
    assert (split.dropped, split.findings, split.empty) == (3, {"other_class": 3}, 1)
    (line,) = [line for line in data.summary().lines() if "left out" in line]
    assert line.endswith("3 of 4 objects are of 2 classes that class_names does not have ('dog' 2, 'cow' 1): left out")
    with pytest.raises(ConfigError, match="other_classes: there is no 'keep'; the choices are error, drop"):
        VOC(path, other_classes="keep")  # type: ignore[arg-type]


def test_missing_things_are_named(two_cats: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder does not exist"):
        VOC(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no annotation \(\*\.xml\) in this folder"):
        VOC(str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"trian\.txt: .*\(available: test, train, val\)"):
        VOC(str(two_cats), train="trian")
    (two_cats / "ImageSets" / "Main" / "none.txt").write_text("\n")
    with pytest.raises(DataError, match="empty"):
        VOC(str(two_cats), train="none")
    (two_cats / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.xml: no image a\.jpg"):
        VOC(str(two_cats))
    (two_cats / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"a\.xml: annotation file does not exist; .* missing_annotations: empty"):
        VOC(str(two_cats))
    (two_cats / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"no object in .*, so no class to learn; give class_names"):
        VOC(str(two_cats))
    with pytest.raises(DataError, match="no image of the train set is annotated"):
        VOC(str(two_cats), train="val", val=None, class_names=["cat"]).setup("fit")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1e300", "1" + "0" * 400])
def test_coordinates_beyond_any_image_are_left_out(two_cats: Path, value: str) -> None:
    edit(two_cats / "Annotations" / "a.xml", "<xmax>20<", f"<xmax>{value}<")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's, of an overflow
        train = VOC(str(two_cats)).annotations("train")
    assert train.counts.tolist() == [1, 1] and [finding.kind for finding in train.findings] == ["not_finite"]


def test_nested_elements(two_cats: Path) -> None:
    nested = "<object>" * 100_000 + "</object>" * 100_000
    (two_cats / "Annotations" / "a.xml").write_text(f"<annotation>{nested}</annotation>")
    with pytest.raises(DataError, match=r"a\.xml: object 1: <name> is missing"):
        VOC(str(two_cats))


@pytest.mark.parametrize("content", [b"a\0b\n", "c\nd\n".encode("utf-16"), b"x" * 5000, b"\xff\xfe\xfd\n"])
def test_image_sets_of_other_encodings_and_odd_names(two_cats: Path, content: bytes) -> None:
    (two_cats / "ImageSets" / "Main" / "odd.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.txt: (image id|is not written in UTF-8)|no object in ") as caught:
        VOC(str(two_cats), train="odd", val=None)
    assert "\0" not in str(caught.value) and len(str(caught.value)) < 400


def test_pipes_are_not_opened(two_cats: Path) -> None:
    for name, message in (("Annotations/a.xml", "is a pipe"), ("ImageSets/Main/train.txt", "does not exist")):
        (two_cats / name).unlink()
        os.mkfifo(two_cats / name)
        with pytest.raises(DataError, match=message):
            VOC(str(two_cats))


def test_links_are_followed(two_cats: Path, tmp_path: Path) -> None:
    (two_cats / "JPEGImages").rename(tmp_path / "elsewhere")
    (two_cats / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    assert VOC(str(two_cats)).dataset("train")[0]["image"].shape == (3, 30, 40)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x/../../a", "..\\a", "C:\\a"])
def test_names_that_leave_the_folder_are_refused(two_cats: Path, name: str) -> None:
    (two_cats / "ImageSets" / "Main" / "bad.txt").write_text(name)
    with pytest.raises(DataError, match="refused"):
        VOC(str(two_cats), train="bad")
    with pytest.raises(DataError):
        VOC(str(two_cats), train=name)
    (two_cats / "JPEGImages" / "a.png").unlink()
    edit(two_cats / "Annotations" / "a.xml", "<filename>a.png<", f"<filename>{name}.png<")
    with pytest.raises(DataError, match="refused"):
        VOC(str(two_cats))


def test_file_name_in_the_xml_is_the_second_choice(two_cats: Path) -> None:
    edit(two_cats / "Annotations" / "a.xml", "<filename>a.png<", "<filename>b.png<")
    assert VOC(str(two_cats)).annotations("train").path(0).endswith("a.png")
    (two_cats / "JPEGImages" / "a.png").unlink()
    assert VOC(str(two_cats)).annotations("train").path(0).endswith("b.png")


def test_image_listed_twice_is_taken_once(two_cats: Path) -> None:
    (two_cats / "ImageSets" / "Main" / "train.txt").write_text("a\nb\na\n")
    train = VOC(str(two_cats)).annotations("train")
    assert len(train) == 2 and [finding.kind for finding in train.findings] == ["duplicate"]


def test_file_that_is_no_annotation(two_cats: Path) -> None:
    (two_cats / "Annotations" / "a.xml").write_text("<html/>")
    with pytest.raises(DataError, match=r"outermost element is <html>"):
        VOC(str(two_cats))


def test_jpeg_and_upper_case_suffixes(two_cats: Path, write_image: Callable[..., Path]) -> None:
    (two_cats / "JPEGImages" / "a.png").unlink()
    write_image(two_cats / "JPEGImages" / "a.JPEG")
    assert VOC(str(two_cats)).annotations("train").path(0).endswith("a.JPEG")


def test_blood_cells(shared: Callable[[str], Path]) -> None:
    data = VOC(str(shared("data/bccd")))
    summary = data.summary()
    assert sum(split.images for split in summary.splits.values()) == 364
    assert data.class_names == ["Platelets", "RBC", "WBC"]
    found = [finding for findings in summary.findings.values() for finding in findings]
    assert sorted(Path(each.file).stem for each in found) == ["BloodImage_00338", "BloodImage_00343"]
    assert {each.kind for each in found} == {"degenerate"} and all(each.object for each in found)


def test_animals(shared: Callable[[str], Path]) -> None:
    data = VOC(str(shared("data/voc-animals")), test=None, num_workers=0)
    summary = data.summary()
    assert (summary.splits["train"].images, summary.splits["val"].images) == (1697, 400)
    assert summary.splits["train"].dropped == 0 and summary.splits["train"].difficult == 430
    sample = data.dataset("val")[0]
    assert sample["image"].shape[0] == 3 and len(sample["boxes"]) == len(sample["labels"]) > 0
