"""The pages of the Python reference: the public names of each package, rendered by mkdocstrings."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

PACKAGES = {
    "detkit": "What most programs need",
    "detkit.data": "Data sets",
    "detkit.boxes": "Boxes",
    "detkit.proposals": "Proposals",
    "detkit.evaluation": "Evaluation",
    "detkit.features": "Features",
    "detkit.heads": "Heads",
    "detkit.training": "Matching, sampling, losses",
    "detkit.detectors": "Detectors",
    "detkit.engine": "Callbacks",
    "detkit.deploy": "Exported detectors",
    "detkit.classification": "Classification",
    "detkit.show": "Pictures",
    "detkit.tools.benchmark": "Benchmark",
    "detkit.errors": "Errors",
}


def pages() -> dict[str, str]:
    """Path of a page -> its Markdown: one for each package."""
    found: dict[str, str] = {}
    seen: set[str] = set()  # a name has one place: the first page
    for package, title in PACKAGES.items():
        module = importlib.import_module(package)
        short = package.removeprefix("detkit").removeprefix(".").rpartition(".")[2] or "index"
        text = f"# {package}\n\n{title}. "
        if package == "detkit":
            text += "The classes of the other pages are found as `detkit.data.VOC` and so on.\n\n"
        text += f"{inspect.getdoc(module) or ''}\n\n"
        new = [path for path in names(module) if path not in seen]
        seen.update(new)
        text += "".join(f"::: {path}\n\n" for path in new)
        found[f"reference/{short}.md"] = text
    return found


def names(module: Any) -> Iterable[str]:
    """The full names of what a package makes public, where each is defined; classes first."""
    public = [name for name in getattr(module, "__all__", []) if name != "__version__"]
    if not public:
        public = [name for name, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__]
    each = [(name, getattr(module, name)) for name in public if not name.startswith("_")]
    found = [(not inspect.isclass(item), item) for _, item in each if inspect.isclass(item) or inspect.isfunction(item)]
    paths = {f"{item.__module__}.{item.__qualname__}": rank for rank, item in found}
    return sorted(paths, key=lambda path: (paths[path], path.rpartition(".")[2].lower()))
