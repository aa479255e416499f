"""Tables of objects, with the columns that people give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import detkit
from detkit.data import CSV
from detkit.errors import DataError


@pytest.fixture
def make(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[[str], Path]:
    """`make(text)` -> a folder with images a.png and b.png, of 40 x 30, in images/ and a table."""

    def make(text: str, encoding: str = "utf-8", name: str = "labels.csv") -> Path:
        for seed, image in enumerate(("a", "b")):
            write_image(tmp_path / "images" / f"{image}.png", seed=seed)
        (tmp_path / name).write_text(text, encoding)
        return tmp_path

    return make


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        "image,xmin,ymin,xmax,ymax,class\na.png,1,2,20,22,cat\na.png,5,5,35,30,dog\nb.png,1,2,20,22,cat\n",
        "filename,width,class,xmin,ymin,xmax,ymax\na.png,40,cat,1,2,20,22\na.png,40,dog,5,5,35,30\nb.png,40,cat,1,2,20,22\n",
        'image_id,bbox,label\na,"[1, 2, 19, 20]",cat\na,"[5, 5, 30, 25]",dog\nb,"[1, 2, 19, 20]",cat\n',
        "Label;Image Path;x;y;w;h\ncat;images/a.png;1;2;19;20\ndog;a;5;5;30;25\ncat;images\\b.png;1;2;19;20\n",
        "images/a.png,1,2,20,22,cat\nimages/a.png,5,5,35,30,dog\nimages/b.png,1,2,20,22,cat\n",
        "class\timage\tx1\ty1\tx2\ty2\n\ncat\ta.png\t1\t2\t20\t22\ndog\ta.png\t5\t5\t35\t30\ncat\tb.png\t1\t2\t20\t22\n",
    ],
)
def test_columns(make: Callable[..., Path], text: str, encoding: str) -> None:
    folder = make(text, encoding)
    data = CSV(str(folder), split=[1, 0, 0])
    train = data.annotations("train")
    assert data.class_names == ["cat", "dog"] and train.counts.tolist() == [2, 1]
    assert train.boxes.tolist() == [[1, 2, 20, 22], [5, 5, 35, 30], [1, 2, 20, 22]]
    assert train.labels.tolist() == [1, 2, 1]
    assert isinstance(detkit.data.open(folder), CSV)


def test_a_column_of_splits(make: Callable[..., Path]) -> None:
    folder = make("split,image,xmin,ymin,xmax,ymax,class\ntrain,a.png,1,2,20,22,cat\nVALID,b.png,5,5,35,30,cat\n")
    data = CSV(str(folder))
    assert [data.annotations(split).files.tolist() for split in ("train", "val")] == [
        ["images/a.png"],
        ["images/b.png"],
    ]
    assert data.test_split == "val"


def test_tables_called_as_splits_are(make: Callable[..., Path]) -> None:
    head = "image,xmin,ymin,xmax,ymax,class\n"
    make(f"{head}a.png,1,2,20,22,cat\n", name="train_labels.csv")
    folder = make(f"{head}b.png,1,2,20,22,cat\n", name="test_labels.csv")
    data = CSV(str(folder))
    assert len(data.annotations("train")) == len(data.annotations("test")) == 1 and data.annotations("val") is None
    make(f"{head}b.png,1,2,20,22,cat\n", name="more.csv")
    with pytest.raises(DataError, match=r"are tables; name one of them as path"):
        CSV(str(folder))


def test_an_image_without_box_and_no_column_of_classes(make: Callable[..., Path]) -> None:
    data = CSV(str(make("image,xmin,ymin,xmax,ymax\na.png,1,2,20,22\nb.png,,,,\n")), split=[1, 0, 0])
    train = data.annotations("train")
    assert data.class_names == ["object"] and train.counts.tolist() == [1, 0]
    assert [finding.kind for finding in train.findings] == ["one_class"]


def test_shares_of_the_sides_are_read_on_request(make: Callable[..., Path]) -> None:
    folder = str(make("ImageID,LabelName,XMin,XMax,YMin,YMax\na,cat,0.25,0.75,0.1,0.9\n"))
    with pytest.raises(DataError, match=r"line 2: the box .* looks like shares .*--data\.normalized true"):
        CSV(folder)
    train = CSV(folder, normalized=True, split=[1, 0, 0]).annotations("train")
    assert train.boxes.round(4).tolist() == [[10, 3, 30, 27]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,class\na.png,cat\n", "the columns are 'image, class'; wanted are image, class, and xmin"),
        ("image,xmin,ymin,xmax,ymax,class\nc.png,1,2,20,22,cat\n", r"line 2: the image 'c\.png' is not below"),
        (
            "image,xmin,ymin,xmax,ymax,class\n../x.png,1,2,20,22,cat\n",
            r"line 2: file name .* leaves .*; refused",
        ),
        ("image,xmin,ymin,xmax,ymax,class\na.png,1,two,20,22,cat\n", "line 2: '1, two, 20, 22' are not the four"),
        ("image,xmin,ymin,xmax,ymax,class,split\na.png,1,2,20,22,cat,dev\n", "line 2: the split 'dev' is none of"),
        ("image,xmin,ymin,xmax,ymax,class\na.png,1,2,20,22,\n", "line 2: the object has no class"),
    ],
)
def test_bad_tables_are_named(make: Callable[..., Path], text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        CSV(str(make(text)))
    assert "labels.csv" in str(caught.value)
