"""`detkit.convert` and its command: data sets in every format from every other, their images, and what is told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detkit
from detkit.cli.main import main
from detkit.data import Annotations, DetectionDataModule
from detkit.data.voc_xml import VOCObject, format_annotation
from detkit.errors import ConfigError, DataError
from detkit.tools.convert import RECORD, convert

FORMATS = ("coco", "voc", "yolo", "csv")
CAT, DOG = VOCObject("a cat: 猫", (1, 2, 20, 22), False), VOCObject("dog", (5, 5, 35, 30), False)


def picture(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


def make(root: Path, sets: dict[str, dict[str, list[VOCObject]]]) -> Path:
    """A VOC folder: set -> file name -> objects."""
    (root / "ImageSets/Main").mkdir(parents=True)
    for name, images in sets.items():
        for seed, (file, objects) in enumerate(images.items()):
            picture(root / "JPEGImages" / file, seed=seed)
            source = root / "Annotations" / Path(file).with_suffix(".xml")
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(format_annotation(Path(file).name, 40, 30, objects), "utf-8")
        ids = [os.path.splitext(file)[0] for file in images]
        (root / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(ids), "utf-8")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three sets, names with spaces and of other scripts, and an image without objects."""
    sets = {
        "train": {"a b.png": [CAT, DOG], "Käfer 1.jpg": []},
        "val": {"v.png": [DOG]},
        "test": {"sub/t.png": [CAT], "other/t.png": [DOG]},
    }
    return make(tmp_path / "voc", sets)


def content(data: DetectionDataModule) -> dict[str, dict[str, list[tuple[object, ...]]]]:
    """Split -> file name -> objects, and that all images open."""
    found = {}
    for split in ("train", "val", "test"):
        annotations = data.annotations(split)
        found[split] = {key(annotations, index): boxes(data, annotations, index) for index in range(len(annotations))}
    return found


def key(annotations: Annotations, index: int) -> str:
    path = Path(annotations.path(index))
    return f"{path.parent.name}/{path.name}" if path.name == "t.png" else path.name


def boxes(data: DetectionDataModule, annotations: Annotations, index: int) -> list[tuple[object, ...]]:
    fields = annotations.fields(index)
    image = annotations.image(index)
    assert image.shape == (annotations.heights[index], annotations.widths[index], 3)
    rows = zip(fields["labels"], fields["boxes"].tolist(), strict=True)
    return [(data.class_names[label - 1], *box) for label, box in rows]


@pytest.mark.parametrize("first", FORMATS)
def test_every_format_from_every_other(voc: Path, tmp_path: Path, first: str) -> None:
    truth = content(detkit.data.open(voc))
    assert {split: len(images) for split, images in truth.items()} == {"train": 2, "val": 1, "test": 2}
    one = convert(detkit.data.open(voc), first, tmp_path / "first")
    assert one.images == {"train": 2, "val": 1, "test": 2} and one.boxes == {"train": 2, "val": 1, "test": 2}
    for second in FORMATS:
        data = detkit.data.open(tmp_path / "first")
        assert content(data) == truth
        convert(data, second, tmp_path / "deep" / second, images="copy" if second == "voc" else "link")
        assert content(detkit.data.open(tmp_path / "deep" / second)) == truth


def test_the_tools_take_a_path_too(voc: Path, tmp_path: Path) -> None:
    assert convert(voc, "csv", tmp_path / "csv").images == {"train": 2, "val": 1, "test": 2}
    assert detkit.propose(str(voc), "val", output=str(tmp_path / "val.proposals"), workers=1).text.startswith("1 image")
    with pytest.raises(DataError, match="has sets of its own"):
        detkit.split(voc)


@pytest.mark.parametrize("to", FORMATS)
def test_the_command(voc: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / to
    assert main(["convert", str(voc), "--to", to, "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "  train: 2 images, 2 boxes" in out and out.endswith(f"written: {output}\n")
    assert out.endswith((output / RECORD).read_text("utf-8"))
    assert [path.name for path in output.parent.iterdir()] == [to]  # no stage is left
    links = [path for path in output.rglob("*") if path.is_symlink()]
    assert len(links) == 5 and not any(os.path.isabs(os.readlink(link)) for link in links)
    assert content(detkit.data.open(output)) == content(detkit.data.open(voc))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "tfrecord", "--output", "new"], "tfrecord"),
        (["--to", "coco"], "output"),
        (["--output", "new"], "required: to"),
        (["--to", "coco", "--output", "new", "--images", "move"], "move"),
        (["--to", "coco", "--output", "file"], "is a file; choose another folder by --output"),
        (["--to", "coco", "--output", "voc"], "not made by detkit convert"),
        (["--to", "coco", "--output", "voc", "--overwrite", "true"], "not made by detkit convert"),
        (["--to", "coco", "--output", "file/new"], "choose another folder"),
    ],
)
def test_bad_arguments(
    voc: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    assert main(["convert", str(voc), *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(os.listdir()) == ["file", "voc"]


def test_an_earlier_output_is_replaced_only_if_asked(voc: Path, tmp_path: Path) -> None:
    output = tmp_path / "new"
    output.mkdir()  # an empty folder is as good as none
    convert(detkit.data.open(voc), "yolo", output)
    with pytest.raises(ConfigError, match="holds a data set already; --overwrite true replaces"):
        convert(detkit.data.open(voc), "coco", output)
    assert type(detkit.data.open(output)).__name__ == "YOLO"
    convert(detkit.data.open(voc), "coco", output, overwrite=True)
    assert type(detkit.data.open(output)).__name__ == "COCO" and not (output / "data.yaml").exists()


@pytest.mark.parametrize("images", ["copy", "link"])
def test_what_is_read_is_never_replaced(voc: Path, tmp_path: Path, images: str) -> None:
    convert(detkit.data.open(voc), "yolo", tmp_path / "new", images=images)
    with pytest.raises(ConfigError, match=r"holds .*, which is read"):
        convert(detkit.data.open(tmp_path / "new"), "coco", tmp_path / "new", overwrite=True)
    assert content(detkit.data.open(tmp_path / "new"))


def test_a_file_of_annotations_is_opened_with_the_images_beside_its_folder(voc: Path, tmp_path: Path) -> None:
    convert(detkit.data.open(voc), "coco", tmp_path / "new")
    data = detkit.data.open(tmp_path / "new/annotations/instances_train.json", split=[1.0, 0.0, 0.0])
    expected = detkit.data.open(tmp_path / "new").annotations("train")
    assert len(data.annotations("train").boxes) == len(expected.boxes)
    assert Path(data.annotations("train").path(0)).exists()


def test_nothing_is_left_where_an_image_cannot_be_read(voc: Path, tmp_path: Path) -> None:
    data = detkit.data.open(voc)
    data.annotations("val")
    (voc / "JPEGImages/v.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"v\.png: image cannot be read"):
        convert(data, "coco", tmp_path / "new")
    assert os.listdir(tmp_path) == ["voc"]


def test_where_links_cannot_be_made(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(ConfigError, match=r"links cannot be made there .*; use --images copy"):
        convert(detkit.data.open(voc), "coco", tmp_path / "new")
    assert os.listdir(tmp_path) == ["voc"]
    convert(detkit.data.open(voc), "coco", tmp_path / "new", images="copy")


def test_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    """YOLO and VOC find the labels by the name without suffix; VOC has all splits in one folder."""
    root = tmp_path / "two"
    for split, name in (("train", "a.png"), ("train", "a.bmp"), ("val", "a.png")):
        picture(root / split / name)
    rows = ["image,xmin,ymin,xmax,ymax,class,split"]
    rows += ["train/a.png,1,2,20,22,x,train", "train/a.bmp,3,2,20,22,x,train", "val/a.png,5,2,20,22,x,val"]
    (root / "table.csv").write_text("\n".join(rows))
    for to, expected in {
        "coco": ["images/train/a.bmp", "images/train/a.png", "images/val/a.png"],
        "yolo": ["images/train/a.png", "images/train/a_2.bmp", "images/val/a.png"],
        "voc": ["JPEGImages/a.png", "JPEGImages/a_2.bmp", "JPEGImages/a_3.png"],
    }.items():
        result = convert(detkit.data.open(root), to, tmp_path / to)
        found = [str(path.relative_to(tmp_path / to)) for path in (tmp_path / to).rglob("a*") if path.is_symlink()]
        assert sorted(found) == expected
        data = detkit.data.open(tmp_path / to)
        assert sorted(data.annotations("train").boxes[:, 0]) == [1, 3] and data.annotations("val").boxes[0, 0] == 5
        told = [note for note in result.notes if "renamed" in note]
        count = {"coco": 0, "yolo": 1, "voc": 2}[to]
        assert [note.split()[0] for note in told] == ([str(count)] if count else [])


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_names_that_differ_by_case_only_are_told_apart(tmp_path: Path, to: str) -> None:
    """Windows and macOS would write one over the other."""
    root = tmp_path / "two"
    for name in ("a.png", "A.png"):
        picture(root / name)
    (root / "table.csv").write_text("image,xmin,ymin,xmax,ymax,class\na.png,1,2,20,22,x\nA.png,3,2,20,22,x\n")
    convert(detkit.data.open(root, sets={"train": ["*"]}), to, tmp_path / to)
    found = [path.name for path in (tmp_path / to).rglob("*.png")]
    assert len(found) == 2 == len({name.casefold() for name in found})


@pytest.mark.parametrize("to", FORMATS)
def test_names_that_readers_stumble_over(tmp_path: Path, to: str) -> None:
    root = tmp_path / "odd"
    names = [" a .png", "b:c.png", "images/d.png", "labels/images/e.png", "f.PNG"]
    (root / "labels").mkdir(parents=True)
    for seed, name in enumerate(names):
        picture(root / name, seed=seed)
    (root / "classes.txt").write_text("x\n")
    for number, name in enumerate(names):
        label = {"images/d.png": "labels/d", "labels/images/e.png": "labels/labels/e"}.get(name, name[:-4])
        (root / label).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{label}.txt").write_text(f"0 0.5 0.5 {0.2 + number / 10:.1f} 0.4\n")
    before = detkit.data.open(root, split=[1, 0, 0])
    widths = sorted((before.annotations("train").boxes[:, 2] - before.annotations("train").boxes[:, 0]).tolist())
    assert widths == [8, 12, 16, 20, 24]
    result = convert(before, to, tmp_path / "new")
    data = detkit.data.open(tmp_path / "new")  # one set stays one set
    train = data.annotations("train")
    pixels = {(train.image(index).tobytes(), *train.fields(index)["boxes"][0]) for index in range(len(train))}
    old = before.annotations("train")
    assert pixels == {(old.image(index).tobytes(), *old.fields(index)["boxes"][0]) for index in range(len(old))}
    assert data.annotations("val") is None
    assert any(note.startswith("2 images are renamed") for note in result.notes)


def test_an_image_in_two_sets_of_voc_stays_one(tmp_path: Path) -> None:
    both, hard = {"b.png": [CAT]}, VOCObject("dog", (5, 5, 35, 30), True)
    root = make(tmp_path / "voc", {"val": both, "train": {"a.png": [CAT, hard], **both}})
    result = convert(detkit.data.open(root), "voc", tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new/JPEGImages").iterdir()) == ["a.png", "b.png"]
    assert (tmp_path / "new/ImageSets/Main/val.txt").read_text() == "b\n"
    assert not any("renamed" in note for note in result.notes)
    assert detkit.data.open(tmp_path / "new").annotations("train").difficult.tolist() == [False, True, False]


@pytest.mark.parametrize(("size", "told"), [((30, 40), "turned by their EXIF"), ((40, 30), "do not follow")])
def test_exif(tmp_path: Path, size: tuple[int, int], told: str) -> None:
    """A photo stored as 40 x 30, to be turned by 90 degrees; the annotation means it as one or the other."""
    root = tmp_path / "voc"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    picture(root / "JPEGImages/a.jpg", (40, 30), orientation=6)
    (root / "Annotations/a.xml").write_text(format_annotation("a.jpg", *size, [VOCObject("x", (1, 2, 20, 22), False)]))
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    linked = convert(detkit.data.open(root), "yolo", tmp_path / "linked")
    assert any(told in note and "--images copy" in note for note in linked.notes)
    copied = convert(detkit.data.open(root), "yolo", tmp_path / "copied", images="copy")
    assert any("1 images with an EXIF orientation are written anew" in note for note in copied.notes)
    with Image.open(tmp_path / "copied/images/train/a.jpg") as image:
        assert image.size == size and image.getexif().get(0x0112, 1) == 1
        before = detkit.data.open(root).annotations("train").image(0)
        assert np.abs(np.asarray(image).astype(int) - before).mean() < 12  # JPEG of noise
    read = detkit.data.open(tmp_path / "copied").annotations("train")
    np.testing.assert_allclose(read.boxes, [[1, 2, 20, 22]])


def test_a_wrong_size_is_told_and_the_images_counts(tmp_path: Path) -> None:
    root = make(tmp_path / "voc", {"train": {"a.png": [CAT]}})
    convert(detkit.data.open(root), "coco", tmp_path / "coco", images="copy")
    file = tmp_path / "coco/annotations/instances_train.json"
    file.write_text(file.read_text("utf-8").replace('"width":40', '"width":80'), "utf-8")
    result = convert(detkit.data.open(tmp_path / "coco"), "yolo", tmp_path / "yolo")
    assert "train: other size: 1" in result.notes
    np.testing.assert_allclose(detkit.data.open(tmp_path / "yolo").annotations("train").boxes, [CAT.box])


def test_without_images(voc: Path, tmp_path: Path) -> None:
    result = convert(detkit.data.open(voc), "coco", tmp_path / "new", images="none")
    assert "the images belong into images/train, images/val, images/test" in result.text
    files = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert files == {RECORD, *(f"annotations/instances_{split}.json" for split in ("train", "val", "test"))}


def test_what_reading_left_out_is_told(tmp_path: Path) -> None:
    thin = VOCObject("dog", (3, 3, 3.5, 9), False)
    result = convert(detkit.data.open(make(tmp_path / "voc", {"train": {"a.png": [CAT, thin]}})), "csv", tmp_path / "x")
    assert "train: degenerate: 1" in result.notes


def test_ids_of_coco_stay(tmp_path: Path, voc: Path) -> None:
    convert(detkit.data.open(voc), "coco", tmp_path / "one")
    file = tmp_path / "one/annotations/instances_train.json"
    text = file.read_text("utf-8").replace('"id":1,"file', '"id":77,"file').replace('"image_id":1,', '"image_id":77,')
    text = text.replace('"category_id":2', '"category_id":90').replace('{"id":2,"name"', '{"id":90,"name"')
    file.write_text(text, "utf-8")
    convert(detkit.data.open(tmp_path / "one"), "coco", tmp_path / "two")
    data = detkit.data.open(tmp_path / "two")
    assert data.annotations("train").image_ids.tolist() == [77, 2]
    assert data.category_ids_of("train") == [1, 90] and data.category_ids_of("val") == [1, 2]


def test_a_data_set_without_sets_is_divided(tmp_path: Path) -> None:
    root = make(tmp_path / "voc", {"all": {f"{number}.png": [CAT] for number in range(10)}})
    result = convert(detkit.data.open(root), "yolo", tmp_path / "new")
    assert result.images == {"train": 8, "val": 1, "test": 1}
    assert any("detkit has divided it" in note for note in result.notes)
