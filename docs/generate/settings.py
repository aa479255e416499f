"""The pages of the settings, made of the dataclasses and the constructors; the presets' values beside each other."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from detkit.settings import Configurable, parameters_of
from docs.generate.words import arguments, choices, plain, summary, table, value

CONFIGS = Path(__file__).parents[2] / "configs"


class Detector(NamedTuple):
    """A class, the configs of its presets, and the section of papers.md."""

    name: str
    module: str
    paper: str
    modern: str
    section: str


DETECTORS = (
    Detector("RCNN", "detkit", "rcnn/paper_voc07_alexnet", "rcnn/modern_custom", "21-r-cnn"),
    Detector("FastRCNN", "detkit", "fast_rcnn/paper_voc07_vgg16", "fast_rcnn/modern_custom", "22-fast-r-cnn"),
    Detector(
        "FasterRCNN",
        "detkit",
        "faster_rcnn/paper_voc07_vgg16",
        "faster_rcnn/modern_coco_resnet50_fpn",
        "23-faster-r-cnn",
    ),
)
#: Arguments that the data set supplies.
SUPPLIED = ("class_names", "category_ids", "preprocessing")


def pages() -> dict[str, str]:
    """Path of a page -> its Markdown: one for each detector, the classifier, data sets, proposals, and their list."""
    found = {f"settings/{each.name.lower()}.md": detector_page(each) for each in DETECTORS}
    found["settings/imageclassifier.md"] = class_page("ImageClassifier", "detkit", "--model.")
    found["settings/data.md"] = classes_page(
        "Data sets",
        "Options of `--data.NAME VALUE`. [Your own data](../data.md) explains the layouts.",
        [("detkit.data", name) for name in names_of("detkit.data", "DataModule")]
        + [("detkit.classification", name) for name in names_of("detkit.classification", "DataModule")],
    )
    found["settings/proposals.md"] = classes_page(
        "Proposal methods",
        "Options of `--method NAME --method.OPTION VALUE` of [`detkit propose`](../commands/propose.md), and of "
        "`proposals.method` of a detector.",
        [("detkit.proposals", name) for name in names_of("detkit.proposals", "ProposalMethod")],
    )
    return {"settings/index.md": overview(), **found}


def names_of(package: str, base: str) -> list[str]:
    """The public classes of a package that are made from a config: subclasses of a base by its name, without it."""
    module = importlib.import_module(package)
    classes = [(name, getattr(module, name)) for name in module.__all__]
    bases = {"DataModule", "DetectionDataModule", "ClassificationDataModule", "ProposalMethod"}
    return [
        name
        for name, cls in classes
        if isinstance(cls, type) and name not in bases and base in {each.__name__ for each in cls.__mro__}
    ]


def overview() -> str:
    """The list of the pages, and how an option is set."""
    rows = [[f"[{each.name}]({each.name.lower()}.md)", f"`{each.paper}`", f"`{each.modern}`"] for each in DETECTORS]
    return (
        "# Every setting\n\n"
        "These pages are made of the classes. An option is set in a config (`rpn: {nms_threshold: 0.7}`), on "
        "the command line (`--model.rpn.nms_threshold 0.7`) or in Python (`rpn=RPNSettings(nms_threshold=0.7)`). The "
        "default is what holds where a config says nothing. A detector has two presets: *paper* has the authors' "
        "numbers, *modern* what works better; [What the papers' code does](../papers.md) has the sources.\n\n"
        + table(("detector", "paper", "modern"), rows)
        + "\nThe others: [ImageClassifier](imageclassifier.md), [data sets](data.md), "
        "[proposal methods](proposals.md). All configs: [Recipes](../configs.md).\n"
    )


def meanings_of(cls: type) -> dict[str, str]:
    """The meaning of each argument of a constructor, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= arguments(base.__dict__.get("__doc__"))
    return found


def is_group(default: Any) -> bool:
    """Whether an argument is a group of settings, which has a table of its own."""
    return is_dataclass(default) and not isinstance(default, Configurable)


# -- the presets ------------------------------------------------------------------------------------


def preset(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that a config gives a model, and its comments, by dotted names."""
    path = CONFIGS / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    return dotted(yaml.safe_load(text)["model"]["init_args"]), comments(text)


def dotted(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted names; an object (`class_path`) is a value."""
    found: dict[str, Any] = {}
    for name, item in content.items():
        if isinstance(item, Mapping) and "class_path" not in item:
            found |= dotted(item, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = item
    return found


def comments(text: str) -> dict[str, str]:
    """The comment of each value of a model in a config, by its dotted name below `init_args`."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)(\w+):.*?(?:  # (.*))?$", line)
        if not match:
            continue
        indent = len(match[1])
        parents = [(depth, name) for depth, name in parents if depth < indent]
        path = [name for _, name in parents] + [match[2]]
        if match[3] and path[:2] == ["model", "init_args"]:
            found[".".join(path[2:])] = match[3]
        parents.append((indent, match[2]))
    return found


# -- the pages --------------------------------------------------------------------------------------


def detector_page(detector: Detector) -> str:
    """All settings of a detector, with the values of its two presets."""
    cls = getattr(importlib.import_module(detector.module), detector.name)
    paper, modern = preset(detector.paper), preset(detector.modern)
    text = (
        f"# Settings of {detector.name}\n\n"
        f"*paper* is [`{detector.paper}`](../configs/{detector.paper}.md), *modern* "
        f"[`{detector.modern}`](../configs/{detector.modern}.md). Sources: [papers.md](../papers.md#{detector.section})"
        " and the comments of the presets, given behind the meaning. A value in bold differs from the default.\n\n"
    )
    meanings = meanings_of(cls)
    loose, groups = [], []
    for name, (annotation, default) in parameters_of(cls).items():
        if name in SUPPLIED:
            continue
        if is_group(default):
            groups.append((name, default))
        else:
            loose.append(setting(name, annotation, default, meanings.get(name, ""), paper, modern))
    head = ("option", "default", "paper", "modern", "meaning")
    text += "## The detector\n\n" + wrapped(table(head, loose))
    for name, default in groups:
        group = type(default)
        known = meanings_of(group)
        text += f"## {name}\n\n{summary(group.__doc__)} In Python: `{group.__name__}`.\n\n"
        rows = [
            setting(
                f"{name}.{each.name}", each.type, getattr(default, each.name), known.get(each.name, ""), paper, modern
            )
            for each in fields(default)
        ]
        text += wrapped(table(head, rows))
    return text


def wrapped(listed: str) -> str:
    """A table that site.css shows otherwise on a phone."""
    return f'<div class="settings" markdown>\n\n{listed}\n</div>\n\n'


def setting(name: str, annotation: Any, default: Any, meaning: str, paper: Any, modern: Any) -> list[str]:
    """A row: option, default, the two presets' values, and the meaning with their comments."""
    cells, notes = [], []
    for title, (values, said) in (("paper", paper), ("modern", modern)):
        given = values.get(name, default)
        text = value(given)
        cells.append(f"**{text}**" if name in values and plain(given) != plain(default) else text)
        if name in said and name in values:
            notes.append(f"<br>*{title}: {said[name]}*")
    return [f"`{name}`", value(default), *cells, " ".join([f"`{choices(annotation)}`:", meaning, *notes])]


def class_page(name: str, module: str, prefix: str) -> str:
    """All settings of a class without presets."""
    cls = getattr(importlib.import_module(module), name)
    return f"# Settings of {name}\n\n{class_tables(cls, prefix, 2)}"


def classes_page(title: str, intro: str, classes: list[tuple[str, str]]) -> str:
    """Several small classes on one page."""
    text = f"# {title}\n\n{intro}\n\n"
    for module, name in classes:
        cls = getattr(importlib.import_module(module), name)
        text += f"## {name}\n\n{class_tables(cls, '', 3)}"
    return text


def class_tables(cls: type, prefix: str, level: int) -> str:
    """What a class is, and its settings."""
    text = summary(cls.__doc__) + "\n\n"
    meanings = meanings_of(cls)
    rows, groups = [], []
    parameters: dict[str, tuple[Any, Any]] = {
        name: (kind, default) for name, (kind, default) in parameters_of(cls).items() if name != "category_ids"
    }
    for name, (annotation, default) in parameters.items():
        if is_group(default):
            groups.append((name, default))
            continue
        given = "needed" if default is inspect.Parameter.empty else value(default)
        rows.append([f"`{prefix}{name}`", given, f"`{choices(annotation)}`: {meanings.get(name, '')}"])
    text += table(("option", "default", "meaning"), rows) + "\n" if rows else "It has no options.\n\n"
    for name, default in groups:
        known = meanings_of(type(default))
        rows = [
            [
                f"`{prefix}{name}.{each.name}`",
                value(getattr(default, each.name)),
                f"`{choices(each.type)}`: {known.get(each.name, '')}",
            ]
            for each in fields(default)
        ]
        text += (
            f"{'#' * level} {name}\n\n{summary(type(default).__doc__)}\n\n"
            + table(("option", "default", "meaning"), rows)
            + "\n"
        )
    return text
