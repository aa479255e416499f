"""What is fuzzed: for each reader of detkit's the file that is damaged, and the call that reads it.

A case is a function of a random generator: the same seed and number give the same bytes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
import yaml
from PIL import Image

from tests.deep.mutations import (
    TEXTS,
    VALUES,
    Pickled,
    damage,
    damage_text,
    damage_tree,
    damage_xml,
    damage_yaml,
    encoded,
    name_a_call,
    to_json,
)

Rng = random.Random


class Reader:
    """One reader. ``source`` is a folder with what `make_material` left, ``folder`` an empty one of its own.

    Attributes:
        name: as `--only` takes it.
        share: of the time for fuzzing, relative to the others'.
        file: the damaged file, below the folder.
    """

    name: ClassVar[str]
    share: ClassVar[float] = 1.0
    file: ClassVar[str]

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder
        self.path = folder / self.file
        self.prepare(source)
        self.whole = self.path.read_bytes()

    def prepare(self, source: Path) -> None:
        """Copy what is read into the folder, `file` among it, as it is undamaged."""
        raise NotImplementedError

    def make(self, rng: Rng) -> bytes:
        """The damaged file."""
        raise NotImplementedError

    def read(self) -> None:
        """Read it; AssertionError where the result is wrong."""
        raise NotImplementedError

    @cached_property
    def text(self) -> str:
        return self.whole.decode()

    @cached_property
    def tree(self) -> Any:
        return json.loads(self.whole)


def check_split(data: Any, split: str) -> None:
    """Read a split, summarise it, and decode its first image."""
    annotations = data.annotations(split)
    str(data.summary([split]))
    boxes, labels = annotations.boxes, annotations.labels
    assert np.isfinite(boxes).all() and boxes.dtype == np.float32 and boxes.shape == (len(labels), 4)
    assert ((labels >= 1) & (labels <= data.num_classes)).all()
    sample = data.dataset(split)[0]
    assert sample["image"].dtype == torch.uint8 and len(sample["boxes"]) == len(sample["labels"])


def check_metrics(metrics: dict[str, Any]) -> None:
    """All numbers of an evaluation are shares, or NaN."""
    assert 0 <= metrics["map"] <= 1 or np.isnan(metrics["map"])
    assert all(0 <= value <= 1 or np.isnan(value) for value in metrics["map_per_class"].values())


class VOCAnnotation(Reader):
    name, share, file = "voc-xml", 2.0, "voc/Annotations/train_00000.xml"

    def prepare(self, source: Path) -> None:
        shutil.copytree(source / "voc", self.folder / "voc")

    def make(self, rng: Rng) -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return damage(rng, self.whole)
        return encoded(damage_text(rng, self.text) if kind == 1 else damage_xml(rng, self.text))

    def read(self) -> None:
        from detkit.data import VOC

        check_split(VOC(str(self.folder / "voc"), "train", None, None, num_workers=0), "train")


class VOCImageSet(VOCAnnotation):
    name, share, file = "voc-image-set", 1.0, "voc/ImageSets/Main/train.txt"

    def make(self, rng: Rng) -> bytes:
        if rng.random() < 0.4:
            return damage(rng, self.whole)
        lines = self.text.splitlines() + rng.choices(TEXTS, k=rng.choice((0, 1, 1, 3)))
        rng.shuffle(lines)
        return encoded(damage_text(rng, rng.choice(("\n", "\n", "\r\n", " 1\n")).join(lines)))


class COCOAnnotations(Reader):
    name, share, file = "coco-annotations", 2.0, "coco.json"

    def prepare(self, source: Path) -> None:
        shutil.copy(source / "coco.json", self.folder)
        shutil.copy(source / "predictions.json", self.folder)
        shutil.copytree(source / "voc" / "JPEGImages", self.folder / "images")

    def make(self, rng: Rng) -> bytes:
        if rng.random() < 0.3:
            return damage(rng, self.whole)
        text = to_json(damage_tree(rng, self.tree))
        return encoded(damage_text(rng, text) if rng.random() < 0.1 else text)

    def read(self) -> None:
        from detkit import evaluate
        from detkit.data import COCO
        from detkit.errors import DetkitError

        with contextlib.suppress(DetkitError):
            options = {"train_images": "images", "val_annotations": None, "num_workers": 0}
            check_split(COCO(str(self.folder), "coco.json", **options), "train")
        check_metrics(evaluate(self.folder / "predictions.json", self.folder / "coco.json", report=False).metrics)


class AnyLayout(Reader):
    """A file beside the images, read as `--data PATH` reads it."""

    whole_text: ClassVar[str]  # IMAGE stands for the name of an image

    def prepare(self, source: Path) -> None:
        shutil.copytree(source / "voc" / "JPEGImages", self.path.parent)
        self.others = sorted(path.name for path in self.path.parent.iterdir())
        self.path.write_text(self.whole_text.replace("IMAGE", self.others[0]))

    def make(self, rng: Rng) -> bytes:
        if rng.random() < 0.3:
            return damage(rng, self.whole)
        if self.file.endswith(".json") and rng.random() < 0.8:
            return encoded(to_json(damage_tree(rng, self.tree)))
        return encoded(damage_text(rng, self.text))

    def read(self) -> None:
        import detkit.data

        data = detkit.data.open(self.path.parent, num_workers=0, split=[1, 0, 0])
        if data.annotations("train") is not None:  # a description may name a validation set only
            check_split(data, "train")


class YOLODescription(AnyLayout):
    name, file = "yolo-data-yaml", "yolo/data.yaml"
    whole_text = "path: .\ntrain: IMAGE\nval: [IMAGE]\nnames:\n  0: red\n  1: blue\nkpt_shape: [1, 2]\n"


class YOLOLabels(AnyLayout):
    name, file = "yolo-labels", "yolo/labels.txt"
    whole_text = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.5 0.1 0.3 0.4\n"

    def prepare(self, source: Path) -> None:
        super().prepare(source)
        (self.path.parent / "data.yaml").write_text(f"train: {self.others[0]}\nnames: [red, blue]\n")


class Table(AnyLayout):
    name, file = "csv", "csv/table.csv"
    whole_text = "image,xmin,ymin,xmax,ymax,class,width\nIMAGE,4,5,30,40,red,64\nIMAGE,10,10,50,50,blue,64\n"


class LabelStudioExport(AnyLayout):
    name, file = "label-studio", "studio/export.json"
    whole_text = json.dumps(
        [
            {
                "id": 1,
                "data": {"image": "/data/upload/1/12345678-IMAGE"},
                "annotations": [
                    {
                        "was_cancelled": False,
                        "result": [
                            {
                                "original_width": 64,
                                "original_height": 64,
                                "type": "rectanglelabels",
                                "value": {"x": 1, "y": 2, "width": 30, "height": 40, "rotation": 10}
                                | {"rectanglelabels": ["red"]},
                            },
                            {"type": "polygonlabels", "value": {"points": [[1, 2], [9, 9]], "polygonlabels": ["blue"]}},
                        ],
                    }
                ],
            }
        ]
    )


class LabelMeFile(AnyLayout):
    name, file = "labelme", "labelme/a.json"
    whole_text = json.dumps(
        {
            "shapes": [
                {"label": "red", "points": [[1, 2], [30, 40]], "group_id": None, "shape_type": "rectangle"},
                {"label": "blue", "points": [[10, 10], [14, 13]], "group_id": 1, "shape_type": "circle"},
            ],
            "imagePath": "IMAGE",
            "imageHeight": 64,
            "imageWidth": 64,
        }
    )


class COCOResults(COCOAnnotations):
    name, file = "coco-results", "predictions.json"

    def read(self) -> None:
        from detkit import evaluate

        check_metrics(evaluate(self.folder / "predictions.json", self.folder / "coco.json", report=False).metrics)


class Report(COCOAnnotations):
    """The report of an evaluation whose classes and images have names of any kind."""

    name, share = "report", 1.0

    def make(self, rng: Rng) -> bytes:
        tree = json.loads(self.whole)
        for row in tree["categories"]:
            row["name"] = rng.choice(TEXTS) if rng.random() < 0.5 else row["name"]
        rng.choice(tree["images"])["file_name"] = rng.choice(TEXTS)
        return json.dumps(tree).encode()

    def read(self) -> None:
        from detkit import evaluate

        result = evaluate(self.folder / "predictions.json", self.folder / "coco.json", output=self.folder / "report")
        assert "<script>alert(" not in result.path.read_text(encoding="utf-8"), "a name is not escaped in index.html"
        with open(self.folder / "report" / "per_class.csv", encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        formulas = [cell for cell in cells if cell[:1] in ("=", "+", "-", "@") and not _is_number(cell)]
        assert not formulas, f"a spreadsheet calculates {formulas[0]!r} in per_class.csv"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class VOCResults(Reader):
    name, share, file = "voc-results", 1.0, "results/comp4_det_train_circle.txt"

    def prepare(self, source: Path) -> None:
        shutil.copytree(source / "voc", self.folder / "voc")
        shutil.copytree(source / "results", self.folder / "results")

    def make(self, rng: Rng) -> bytes:
        if rng.random() < 0.3:
            return damage(rng, self.whole)
        rows = [line.split() for line in self.text.splitlines()]
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice(rows)[rng.randrange(6)] = rng.choice([*TEXTS, "-0", "1e308", "-1e308", "٣", "1_0"])
        return encoded("\n".join(" ".join(row) for row in rows))

    def read(self) -> None:
        from detkit import evaluate

        result = evaluate(self.folder / "results", self.folder / "voc", split="train", report=False)
        check_metrics(result.metrics)


class ImageFile(Reader):
    name, share, file = "image", 3.0, "image.jpg"
    modes: ClassVar = ("RGB", "L", "RGBA", "P", "CMYK", "I;16", "1", "LA", "I", "F")
    formats: ClassVar = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")

    def prepare(self, source: Path) -> None:
        self.wholes = list(_images(self.formats, self.modes))
        self.path.write_bytes(self.wholes[0])

    def make(self, rng: Rng) -> bytes:
        data = rng.choice(self.wholes)
        if rng.random() < 0.5:  # in the header
            return damage(rng, data[:64]) + data[64:]
        return damage(rng, data)

    def read(self) -> None:
        from detkit.data.image_io import image_size, read_image
        from detkit.engine.predictions import is_drawing
        from detkit.errors import DetkitError

        is_drawing(self.path)
        with contextlib.suppress(DetkitError):
            image_size(self.path)
        image = read_image(self.path)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def _images(formats: tuple[str, ...], modes: tuple[str, ...]) -> Iterator[bytes]:
    """An image of 24 x 20 pixels in each format and mode that go together, now and then turned by EXIF."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in formats:
        for mode in modes:
            picture = Image.fromarray(pixels)
            picture = picture.convert("L").convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)
            for options in ({}, {"exif": exif}, {"compression": "tiff_lzw"}, {"progressive": True}):
                buffer = io.BytesIO()
                with contextlib.suppress(OSError, ValueError, KeyError):
                    picture.save(buffer, format, **options)
                    yield buffer.getvalue()


class Store(Reader):
    name, share, file = "proposal-store", 2.0, "train.proposals"

    def prepare(self, source: Path) -> None:
        shutil.copy(source / "train.proposals", self.folder)

    def make(self, rng: Rng) -> bytes:
        if rng.random() < 0.5:
            return damage(rng, self.whole)
        connection = sqlite3.connect(":memory:")
        connection.deserialize(self.whole)
        table = rng.choice(("meta", "images"))
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        for _ in range(rng.choice((1, 1, 2))):
            value = rng.choice([*VALUES, b"", b"\xff", b"\0" * 7, b"\0" * 80])
            value = json.dumps(value) if isinstance(value, list | dict) else value
            with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeEncodeError):
                connection.execute(f"UPDATE {table} SET {rng.choice(names)} = ?", (value,))
        if rng.random() < 0.5:
            _correct_checksums(connection)
        connection.commit()
        return connection.serialize()

    def read(self) -> None:
        from detkit.proposals.store import ProposalStore

        store = ProposalStore(self.path)
        store.verify()
        repr(store)
        store.check(store.images.ids, store.images.widths, store.images.heights)
        for image_id in store:
            boxes = store[image_id]
            assert boxes.dtype == np.float32 and boxes.shape[1:] == (4,) and np.isfinite(boxes).all()


def _correct_checksums(connection: sqlite3.Connection) -> None:
    """Let the checksums be those of the damaged values, as far as they can be computed."""
    from detkit.proposals.store import checksum_of

    with contextlib.suppress(sqlite3.Error, TypeError):
        row = connection.execute("SELECT * FROM meta").fetchone()
        connection.execute("UPDATE meta SET checksum = ?", (checksum_of(*row[:-1]),))
        rows = connection.execute("SELECT rowid, image_id, width, height, scale, boxes FROM images").fetchall()
        for number, *values, boxes in rows:
            right = checksum_of(*values, boxes=boxes)
            connection.execute("UPDATE images SET checksum = ? WHERE rowid = ?", (right, number))


class TorchFile(Reader):
    """A file that torch.save wrote: bytes, the pickle within, or its values are damaged."""

    def make(self, rng: Rng) -> bytes:
        kind = rng.randrange(10)
        if kind < 2:
            return damage(rng, self.whole)
        if kind < 4:
            return self._repacked(rng)
        buffer = io.BytesIO()
        torch.save(self.changed(rng), buffer)
        return buffer.getvalue()

    @cached_property
    def content(self) -> Any:
        return torch.load(io.BytesIO(self.whole), weights_only=True)

    def changed(self, rng: Rng) -> Any:
        """Its values, damaged."""
        tensors = [torch.zeros(0), torch.zeros(3, dtype=torch.int64), torch.full((2, 2), torch.nan)]
        tensors += [torch.zeros(1).bool(), torch.zeros(1, dtype=torch.complex64), torch.zeros(2, 2).to_sparse()]
        return damage_tree(rng, self.content, [*VALUES, *tensors, Pickled(), torch.float16, torch.Size([1])])

    def _repacked(self, rng: Rng) -> bytes:
        """The same file with the bytes of one entry damaged, and the checksums of the zip made right."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self.whole)) as old, zipfile.ZipFile(buffer, "w") as new:
            chosen = rng.choice([*old.namelist(), *[n for n in old.namelist() if n.endswith("data.pkl")] * 20])
            for name in old.namelist():
                data = old.read(name)
                new.writestr(zipfile.ZipInfo(name), damage(rng, data) if name == chosen else data)
        return buffer.getvalue()


class CheckpointFile(TorchFile):
    name, share, file = "checkpoint", 3.5, "checkpoints/last.ckpt"

    def prepare(self, source: Path) -> None:
        self.path.parent.mkdir()
        shutil.copy(source / "faster.ckpt", self.path)

    def changed(self, rng: Rng) -> Any:
        """Mostly a hyper-parameter: that is what a checkpoint says of the model."""
        if rng.random() < 0.4:
            return super().changed(rng)
        return self.content | {"hyper_parameters": damage_tree(rng, self.content["hyper_parameters"])}

    def read(self) -> None:
        import detkit

        model = detkit.load(self.folder)
        assert isinstance(model, detkit.FasterRCNN)


class WeightsFile(TorchFile):
    name, share, file = "weights", 1.5, "weights.pth"

    def prepare(self, source: Path) -> None:
        shutil.copy(source / "weights.pth", self.folder)

    def read(self) -> None:
        from detkit.errors import DetkitError
        from detkit.features.architectures import classification_network
        from detkit.features.weights import load_classification_weights, load_state_dict_file

        network = classification_network("lenet5", 3)
        with contextlib.suppress(DetkitError):
            load_state_dict_file(network, str(self.path), "lenet5")
        load_classification_weights(network, "lenet5", str(self.path))


class Config(Reader):
    name, share, file = "config", 2.0, "run/version_0/config.yaml"

    def prepare(self, source: Path) -> None:
        shutil.copytree(source / "run", self.folder / "run")

    @cached_property
    def tree(self) -> Any:
        return yaml.safe_load(self.whole)

    def make(self, rng: Rng) -> bytes:
        kind = rng.randrange(10)
        if kind < 2:
            return damage(rng, self.whole)
        if kind < 3:
            return encoded(damage_text(rng, self.text))
        # A few options only: the more there are, the longer YAML takes.
        tree = {"trainer": _some(rng, self.tree["trainer"], 0.1)}
        for name in ("model", "data"):
            options = _some(rng, self.tree[name]["init_args"], 0.25)
            if rng.random() < 0.2:
                named = name_a_call(rng, self.tree[name]["init_args"])
                options |= {key: value for key, value in named.items() if value != self.tree[name]["init_args"][key]}
            tree[name] = self.tree[name] | {"init_args": options}
        return encoded(damage_yaml(rng, tree, lambda value: yaml.dump(value, allow_unicode=True, sort_keys=False)))

    def read(self) -> None:
        from detkit.cli.resume import prepare

        prepare("fit", ["--config", str(self.path)])


def _some(rng: Rng, tree: dict[str, Any], share: float) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if rng.random() < share}


class Commands(Config):
    """A config through the whole parser, and as the one in the run of a checkpoint until all classes are built."""

    name, share = "command", 2.5

    def read(self) -> None:
        _main(["fit", "--config", str(self.path), "--print_config"])
        _start(["test", "--ckpt_path", str(self.folder / "run")])


class Start(TorchFile):
    """A checkpoint's hyper-parameters in commands, until all classes are built."""

    name, share, file = "start", 2.5, "run/version_0/checkpoints/last.ckpt"

    def prepare(self, source: Path) -> None:
        shutil.copytree(source / "run", self.folder / "run")
        shutil.copy(source / "faster.ckpt", self.path)

    def make(self, rng: Rng) -> bytes:
        options = {"optimizer": None, "lr_scheduler": None, **self.content["hyper_parameters"]}
        options = name_a_call(rng, options) if rng.random() < 0.5 else damage_tree(rng, options)
        buffer = io.BytesIO()
        torch.save(self.content | {"hyper_parameters": options}, buffer)
        return buffer.getvalue()

    def read(self) -> None:
        for command in ("predict", "fit"):
            _start([command, "--ckpt_path", str(self.path)])
        for folder in (self.folder / "run").glob("version_[1-9]*"):
            shutil.rmtree(folder)


class Resume(TorchFile):
    """A checkpoint from which a fit goes on that has nothing left to do: its loops, optimizer and callbacks."""

    name, share, file = "resume", 2.5, "run/version_0/checkpoints/last.ckpt"

    def prepare(self, source: Path) -> None:
        shutil.copytree(source / "run", self.folder / "run")
        shutil.copytree(source / "voc", self.folder / "voc")
        self.path.parent.mkdir(exist_ok=True)
        shutil.copy(source / "faster.ckpt", self.path)

    def changed(self, rng: Rng) -> Any:
        own = [name for name in self.content if name not in ("state_dict", "hyper_parameters")]
        name = rng.choice(own)
        return self.content | {name: damage_tree(rng, self.content[name])}

    def read(self) -> None:
        data = ["--data", "VOC", "--data.path", str(self.folder / "voc"), "--data.train", "train", "--data.val", "null"]
        data += ["--data.test", "null", "--data.num_workers", "0", "--data.class_names", json.dumps(CLASSES)]
        quiet = [f"--trainer.{name}=false" for name in ("logger", "enable_progress_bar", "enable_checkpointing")]
        _main(["fit", "--ckpt_path", str(self.path), "--trainer.max_epochs=1", *data, *quiet])
        for folder in (self.folder / "run").glob("version_*"):
            if folder.name != "version_0":
                shutil.rmtree(folder)


def _start(args: list[str]) -> None:
    """A whole command but for the work itself."""
    from detkit.cli.lightning_cli import DetkitCLI

    with patch.object(DetkitCLI, "run_command", lambda self: None):
        _main(args)


def _main(args: list[str]) -> None:
    """A whole command in this process; AssertionError where its exit code is neither 0 nor 2."""
    from detkit.cli.main import main

    try:
        code = main(args)
    except SystemExit as end:  # --print_config, which ends the program
        code = end.code or 0
    assert code in (0, 2), f"exit code {code}"


class Baseline(Reader):
    name, share, file = "baseline", 0.7, "metrics.json"

    def prepare(self, source: Path) -> None:
        shutil.copy(source / "metrics.json", self.folder)
        self.now = json.loads(self.path.read_text())

    make = COCOAnnotations.make

    def read(self) -> None:
        from detkit.evaluation.report.comparison import compare
        from detkit.evaluation.tables import baseline_text, read_baseline

        earlier = read_baseline(self.path)
        baseline_text(self.now, earlier)
        compare(self.now, earlier)


class ShapesParameters(Reader):
    name, share, file = "shapes-json", 0.3, "voc/shapes.json"
    prepare = VOCAnnotation.prepare
    make = COCOAnnotations.make

    def read(self) -> None:
        from detkit.data import Shapes

        Shapes(str(self.folder / "voc"), 2, 1, 1, 48, num_workers=0).prepare_data()


READERS: dict[str, type[Reader]] = {
    reader.name: reader
    for reader in (
        *(VOCAnnotation, VOCImageSet, COCOAnnotations, COCOResults, VOCResults, ImageFile, Store, CheckpointFile),
        *(WeightsFile, Config, Commands, Resume, Start, Baseline, Report, ShapesParameters),
        *(YOLODescription, YOLOLabels, Table, LabelStudioExport, LabelMeFile),
    )
}
CLASSES = ["circle", "rectangle", "ring", "star", "triangle"]


# -- the undamaged files ----------------------------------------------------------------------------


def make_material(folder: Path, version: Path) -> None:
    """Make all undamaged files in a folder, from the run of a Faster R-CNN; the same files each time."""
    from detkit import evaluate
    from detkit.data.shapes import draw_shapes
    from detkit.features.architectures import classification_network
    from detkit.proposals.sliding_windows import sliding_windows
    from detkit.proposals.store import Images
    from detkit.proposals.store_writer import StoreWriter

    folder.mkdir(parents=True)
    draw_shapes(str(folder / "voc"), {"train": 2, "val": 1, "test": 1}, 48, 0)
    _write_coco(folder)
    metrics = evaluate(folder / "predictions.json", folder / "coco.json", output=folder / "report", report=False)
    # A path in a file would make its bytes depend on the folder of the campaign.
    (folder / "metrics.json").write_text(metrics.path.read_text().replace(str(folder), "/deep"))
    ids, size = ["train_00000", "train_00001"], (48, 48)
    with StoreWriter(folder / "train.proposals", Images.of(ids, [48, 48], [48, 48]), "x.Y", {"stride": 16}) as writer:
        for index in range(2):
            writer.add(index, sliding_windows(size, (16, 24), (1.0,), 16).numpy(), size)
        writer.finish()
    torch.manual_seed(0)
    torch.save(classification_network("lenet5", 3).state_dict(), folder / "weights.pth")
    (folder / "run" / "version_0").mkdir(parents=True)
    replaced = {str(version.parents[1]): "/deep", str(version.parents[2]): "/deeper"}
    text = (version / "config.yaml").read_text()
    checkpoint = torch.load(version / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(_replaced(checkpoint, replaced), folder / "faster.ckpt")
    (folder / "run" / "version_0" / "config.yaml").write_text(_replaced(text, replaced))
    (folder / "run" / "version_0" / "checkpoints").mkdir()
    shutil.copy(folder / "faster.ckpt", folder / "run" / "version_0" / "checkpoints" / "best.ckpt")


def _replaced(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, str):
        for old, new in words.items():
            value = value.replace(old, new)
    elif isinstance(value, dict):
        value = {_replaced(k, words): _replaced(v, words) for k, v in value.items()}
    elif isinstance(value, list | tuple):
        value = type(value)(_replaced(v, words) for v in value)
    return value


def _write_coco(folder: Path) -> None:
    """coco.json and predictions.json, and the same detections as VOC's result files, of the pictures in voc/."""
    from detkit.data import VOC

    annotations = VOC(str(folder / "voc"), "train", None, None, class_names=CLASSES, num_workers=0).annotations("train")
    images, objects, detections = [], [], []
    (folder / "results").mkdir()
    lines: dict[str, list[str]] = {name: [] for name in CLASSES}
    for index in range(len(annotations)):
        image_id = annotations.image_id(index)
        images.append({"id": index + 1, "file_name": f"{image_id}.jpg", "width": 48, "height": 48})
        for row in range(annotations.offsets[index], annotations.offsets[index + 1]):
            x1, y1, x2, y2 = (float(value) for value in annotations.boxes[row])
            label = int(annotations.labels[row])
            box = {"image_id": index + 1, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            objects.append({**box, "id": row + 1, "area": (x2 - x1) * (y2 - y1), "iscrowd": int(row == 0)})
            detections.append({**box, "score": 0.9 - row / 10})
            lines[CLASSES[label - 1]].append(f"{image_id} {0.9 - row / 10} {x1 + 1} {y1 + 1} {x2} {y2}")
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, 1)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    (folder / "predictions.json").write_text(json.dumps(detections))
    lines["circle"] = lines["circle"] or ["train_00000 0.5 3 3 20 20"]
    for name, rows in lines.items():
        if rows:
            (folder / "results" / f"comp4_det_train_{name}.txt").write_text("\n".join(rows) + "\n")
