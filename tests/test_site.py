"""The site's pages, without building it: what is generated is complete, and what is written is true."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import detkit
from detkit.cli.help import COMMANDS
from detkit.cli.resume import OPTIONS
from detkit.cli.signatures import Names, options_of, options_of_class
from detkit.cli.tools import TOOLS
from detkit.config_files import find_config
from detkit.settings import construct
from docs.generate import commands, reference, repository, settings

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
DATA = ("VOC", "COCO", "YOLO", "CSV", "LabelStudio", "LabelMe", "Shapes", "ImageFolder")
#: What is written by hand, with the README.
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
#: The program in Python on a page, by words in it -> the test that executes it; "" for those below.
EXECUTED = {
    ("README.md", "trainer.test("): "tests/test_readme.py",
    ("README.md", "found.filter("): "tests/test_readme.py",
    ("CONTRIBUTING.md", "from dataclasses import dataclass"): "tests/test_open.py",
    ("CONTRIBUTING.md", "class Stripes"): "tests/test_open.py",
    ("CONTRIBUTING.md", "class FirstImages"): "tests/test_open.py",
    ("CONTRIBUTING.md", "class Grid"): "tests/test_open.py",
    ("CONTRIBUTING.md", "class LoudFastRCNN"): "tests/test_open.py",
    ("data.md", "class Cells"): "tests/data/test_own_data_set.py",
    ("export.md", "score_threshold=0.5"): "tests/deploy/test_service.py",
    ("export.md", "BaseHTTPRequestHandler"): "tests/deploy/test_service.py",
    ("export.md", "onnxruntime.InferenceSession"): "tests/deploy/test_service.py",
    ("loggers.md", "Callback"): "tests/cli/test_loggers.py",
    ("command-line.md", "detkit.compress("): "",
    ("data.md", "ProposalStore("): "",
    ("data.md", "data.summary()"): "",
    ("evaluation.md", "metric.update("): "",
    ("start.md", "found.draw("): "",
    ("training.md", "from_pretrained("): "",
    ("training.md", "trainer.test("): "tests/test_readme.py",
}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; "" are commands."""
    text = page.read_text(encoding="utf-8")
    return [body for name, body in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S) if name == language]


def program(page: str, words: str) -> str:
    (found,) = (block for block in blocks(DOCS / page, "python") if words in block)
    return found


# -- what is generated ------------------------------------------------------------------------------


def test_every_command_has_a_page_with_all_its_options() -> None:
    pages = commands.pages()
    assert set(pages) == {"commands/index.md", *(f"commands/{name}.md" for name in COMMANDS)}
    assert all(f"[`{name}`]({name}.md)" in pages["commands/index.md"] for name in COMMANDS)
    for command, tool in TOOLS.items():
        page = pages[f"commands/{command.split()[0]}.md"]
        for name in options_of(tool.module, tool.function) or {}:
            rows = [line for line in page.splitlines() if re.match(rf"\| `--{name}[.`]", line)]
            meanings = [row.rsplit("|", 2)[1].strip() for row in rows]
            assert rows and all(len(each) > 3 for each in meanings), f"{command} --{name} is not explained"
    for command in ("fit", "test", "predict"):
        page = pages[f"commands/{command}.md"]
        assert all(f"`--{name}`" in page for name in ("ckpt_path", "model", "data", "trainer.max_epochs"))
    assert "`--checkpoint.patience`" in pages["commands/fit.md"]
    assert "`--tiles`" in pages["commands/test.md"] and "`--predictions.format`" in pages["commands/predict.md"]


def test_every_settings_class_is_on_a_page() -> None:
    pages = "\n".join((settings.pages() | commands.pages()).values())
    written = set()
    for path in (REPOSITORY / "detkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Settings") and node.decorator_list:
                written.add(
                    (f"detkit.{'.'.join(path.relative_to(REPOSITORY / 'detkit').with_suffix('').parts)}", node.name)
                )
    assert len(written) > 10
    for module, name in sorted(written):
        cls = getattr(importlib.import_module(module), name)
        assert is_dataclass(cls)
        names = [each.name for each in cls.__dataclass_fields__.values()]
        if name == "TileSettings":  # its options are --tiles and --overlap
            names.remove("size")
        assert all(re.search(rf"^\| `(--)?(\w+\.)*{each}` \|", pages, re.M) for each in names), f"{name} is on no page"


def test_the_presets_stand_beside_each_other() -> None:
    page = settings.pages()["settings/fasterrcnn.md"]
    row = next(line for line in page.splitlines() if line.startswith("| `rpn.post_nms` |"))
    assert [each.strip() for each in row.split("|")[2:5]] == ["`[2000, 1000]`", "**`[2000, 300]`**", "`[2000, 1000]`"]
    row = next(line for line in page.splitlines() if line.startswith("| `features.fpn` |"))
    assert row.split("|")[3].strip() == "**`false`**" and "conv5_3" in row


def test_every_setting_says_what_it_means() -> None:
    rows = [line for text in settings.pages().values() for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if re.search(r"`: *\|$", row)] == []


def test_the_reference_has_every_public_name_once() -> None:
    pages = reference.pages()
    named = re.findall(r"^::: (\S+)$", "\n".join(pages.values()), re.M)
    assert len(named) == len(set(named)) > 80
    for name in detkit.__all__:
        each = getattr(detkit, name)
        if inspect.isclass(each) or inspect.isfunction(each):
            assert f"{each.__module__}.{each.__qualname__}" in named


# -- links ------------------------------------------------------------------------------------------


def generated() -> dict[str, str]:
    return {**commands.pages(), **settings.pages(), **reference.pages(), **repository.pages()}


def test_links_of_the_pages_lead_somewhere() -> None:
    """To a page by its file; headings are checked by the build."""
    made = generated()
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))} | made
    there = {*pages, *repository.files(), "notebooks/index.md"}
    there |= {f"notebooks/{path.stem}.md" for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    wrong = []
    for page, text in pages.items():
        linked = repository.with_links(text, page)
        for _, target in repository.LINK.findall(linked):
            if not target or re.match(r"[a-z]+:|#", target):
                continue
            path = Path("/", page).parent / target.partition("#")[0]
            found = str(Path(*Path(repository.posixpath.normpath(path)).parts[1:]))
            if found not in there and not (DOCS / found).is_file():
                wrong.append(f"{page}: {target}")
    assert wrong == []


def test_a_link_to_a_missing_file_of_the_repository_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.md: there is no configs/none\.yaml"):
        repository.with_links("[a](../configs/none.yaml)", "data.md")
    assert repository.with_links("[a](../configs/shapes/rcnn.yaml#x)", "data.md") == "[a](configs/shapes/rcnn.md#x)"
    assert repository.with_links("[`a` b](../configs)", "data.md") == "[`a` b](configs.md)"
    assert repository.with_links("`[a](../x)` [b](papers.md)", "data.md") == "`[a](../x)` [b](papers.md)"


# -- what is written --------------------------------------------------------------------------------


@cache
def templates() -> str:
    """All texts of the source, without what is filled in."""
    texts = []
    for path in sorted((REPOSITORY / "detkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts).replace("`", "")


def test_every_message_of_the_troubleshooting_page_is_one_of_detkits() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(messages) > 50
    parts = {part.strip(" .:;,()") for message in messages for part in message.split("...")}
    assert sorted(part for part in parts if part not in templates()) == []


def lines_of_commands() -> Iterator[tuple[str, str]]:
    """Page and line of each command of detkit in a block, and between backquotes in a text."""
    for page in PAGES:
        for block in blocks(page, ""):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|[|/] ?)(detkit [a-z].*)", line)
                if found:
                    yield page.name, re.split(r" {3,}|  #", found[1])[0]  # what follows explains it
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for line in re.findall(r"(?<!`)`(detkit [a-z][^`]*)`", text):
            yield page.name, line


def known_options(command: str) -> Names:
    """The options of a command: those of all models and data sets where it takes them."""
    if command in ("fit", "validate", "test", "predict"):
        names: Names = {name: options_of(*where) for name, where in OPTIONS.items()}
        names |= dict.fromkeys(
            ("ckpt_path", "seed_everything", "print_config", "tiles", "overlap", "patience", "every")
        )
        names |= dict.fromkeys(("output", "baseline", "score_threshold")) | (names["predictions"] or {})
        names["model"] = union("RCNN", "FastRCNN", "FasterRCNN", "ImageClassifier")
    else:
        tools = [tool for name, tool in TOOLS.items() if name.split()[0] == command]
        names = {name: rest for tool in tools for name, rest in (options_of(tool.module, tool.function) or {}).items()}
    if command in ("fit", "validate", "test", "predict") or "data" in names:
        names["data"] = union(*DATA, "ClassFolder", "CIFAR10", "ObjectCrops")
    if "method" in names:
        names["method"] = union("SelectiveSearch", "SlidingWindows", "StoredRPN")
    return names | dict.fromkeys(("config", "import", "help", "version"))


def union(*classes: str) -> Names:
    names: Names = {}
    for each in classes:
        names |= options_of_class(each) or {}
    return names


def unknown(names: Names | None, dotted: str) -> bool:
    """Whether an option is none of these; where they are not known any is right."""
    first, _, rest = dotted.partition(".")
    if names is None or first in ("help", "class_path", "init_args"):
        return False
    return first not in names or (bool(rest) and unknown(names[first], rest))


def test_every_command_line_of_the_pages_is_one_that_detkit_takes() -> None:
    wrong, count = [], 0
    for page, line in lines_of_commands():
        words = shlex.split(line)
        if len(words) < 2 or words[1].startswith("-") or words[1] == "COMMAND":
            continue
        command, count = words[1], count + 1
        if command not in COMMANDS:
            wrong.append(f"{page}: {line}: there is no command {command}")
            continue
        names = known_options(command)
        for word, following in zip(words[2:], [*words[3:], ""], strict=False):
            option = word.partition("=")[0]
            if re.fullmatch(r"--[\w.-]+", option) and unknown(names, option[2:].replace("-", "_").split("=")[0]):
                wrong.append(f"{page}: {line}: there is no {option}")
            if word == "--config" and "/" in following and not following.endswith(".yaml"):
                find_config(following)
    assert wrong == []
    assert count > 100


def test_every_yaml_of_the_pages_names_what_there_is() -> None:
    wrong, count = [], 0
    for page in PAGES:
        for block in blocks(page, "yaml"):
            content, count = yaml.safe_load(block), count + 1
            for section in ("model", "data"):
                part = content.get(section) if isinstance(content, dict) else None
                if not isinstance(part, dict) or not part.get("class_path", "").startswith(("", "detkit.")):
                    continue
                known = options_of_class(part["class_path"])
                for name in flat(part.get("init_args") or {}):
                    if known is not None and unknown(known, name):
                        wrong.append(f"{page.name}: {part['class_path']} has no {name}")
    assert wrong == []
    assert count >= 10


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, Mapping) and "class_path" not in value and not prefix.startswith("sets"):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


# -- programs ---------------------------------------------------------------------------------------


def test_every_program_of_the_pages_is_executed_by_a_test() -> None:
    missing, used = [], set()
    for page in PAGES:
        for block in blocks(page, "python"):
            found = [key for key in EXECUTED if key[0] == page.name and key[1] in block]
            if len(found) != 1:
                missing.append(f"{page.name}: {block[:60]!r}")
            used.update(found)
    assert missing == []
    assert set(EXECUTED) == used
    assert all((REPOSITORY / file).is_file() for file in EXECUTED.values() if file)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the data sets and the run that the pages speak of, all of them small."""
    from lightning.pytorch import Trainer
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    shapes = detkit.data.Shapes("shapes", 8, 4, 4, 64, num_workers=0)
    for name in ("my_photos", "my_data", "data/my_voc"):
        detkit.convert(shapes, "voc", name)
    detkit.convert(shapes, "coco", "coco")
    small = {"backbone": "tiny", "features__fpn": False, "roi__head_channels": 16, "weights": None}
    small |= {"image__min_size": 64, "image__max_size": 64}
    model = construct(detkit.FasterRCNN, {"class_names": shapes.class_names, **small})
    options = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=1, limit_val_batches=0, **options)
    trainer.fit(model, datamodule=shapes)
    for run in ("my", "my_photos", "other"):
        folder = tmp_path / "runs" / run / "version_0" / "checkpoints"
        folder.mkdir(parents=True)
        trainer.save_checkpoint(folder / "best.ckpt")
    Image.new("RGB", (64, 64), "red").save("photo.jpg")
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
class TestPrograms:
    """Each as it stands on its page."""

    def test_start(self, work: Path) -> None:
        exec(program("start.md", "found.draw("), {})
        assert Path("found.png").is_file()

    def test_training(self, work: Path) -> None:
        from lightning.pytorch import Trainer

        trainer = Trainer(fast_dev_run=1, accelerator="cpu")
        data = detkit.data.Shapes("shapes", 8, 4, 4, 64, num_workers=0)
        names: dict[str, Any] = {"detkit": detkit, "trainer": trainer, "data": data}
        text = program("training.md", "from_pretrained(").replace('["cat", "dog"]', "data.class_names")
        exec(text, names)
        assert trainer.global_step == 1 and names["model"].pretrained is not None

    def test_the_command_line_in_python(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pictures = json.loads(Path("coco/annotations/instances_val.json").read_text())["annotations"]
        rows = [{key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for row in pictures]
        Path("predictions.json").write_text(json.dumps(rows))
        Path("coco/annotations/instances_val.json").rename("instances_val2017.json")
        called: list[Any] = []
        true = detkit.benchmark.generations  # takes minutes; has tests of its own
        monkeypatch.setattr(
            detkit.benchmark, "generations", lambda **options: called.append(inspect.signature(true).bind(**options))
        )
        text = program("command-line.md", "detkit.compress(").replace(
            '{"fc6": 1024, "fc7": 256}', '{"fc6": 4, "fc7": 4}'
        )
        names: dict[str, Any] = {}
        exec(text, names)
        assert names["result"].metrics["map"] == 1.0 and called
        assert Path("my_coco").is_dir() and list(Path("runs/my").rglob("best_svd.ckpt"))

    def test_proposals(self, work: Path) -> None:
        from detkit.proposals import SlidingWindows

        result = detkit.propose(detkit.data.VOC("my_data", num_workers=0), "train", SlidingWindows())
        image = detkit.data.VOC("my_data", num_workers=0).annotations("train").image_id(0)
        text = program("data.md", "ProposalStore(")
        text = re.sub(r'"my_data/proposals/[^"]*"', repr(str(result.store.path)), text).replace("cat_01", str(image))
        names: dict[str, Any] = {}
        exec(text, names)
        assert names["store"][image].shape[1] == 4

    def test_a_summary(self, work: Path) -> None:
        names: dict[str, Any] = {}
        exec(program("data.md", "data.summary()"), names)
        assert names["sample"]["image"].shape == (3, 64, 64)

    def test_a_metric(self, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
        boxes = torch.tensor([[0.0, 0, 10, 10]])
        target = {"boxes": boxes, "labels": torch.tensor([1])}
        names = {"batches": [(None, [target])], "detect": lambda _: [target | {"scores": torch.ones(1)}]}
        exec(program("evaluation.md", "metric.update("), names)
        assert "COCO" in capsys.readouterr().out
