"""The notebooks with their outputs, as pages.

`python -m docs.generate.notebooks` executes them into `build/docs/notebooks`, those that have changed since (or detkit,
on which they depend); what a page shows is what that run has printed and drawn.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

from docs.generate.repository import BUILD, REPOSITORY

EXECUTED = BUILD / "notebooks"
DEMO = BUILD / "demo"
MINUTES = 10


def notebooks() -> list[Path]:
    """The notebooks of the repository, in their order."""
    return sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))


def execute() -> None:
    """Execute the notebooks that are newer than their outputs, with a detector and images of `detkit demo`."""
    changed = max(path.stat().st_mtime for path in (REPOSITORY / "detkit").rglob("*.py"))
    EXECUTED.mkdir(parents=True, exist_ok=True)
    environment = {"DETKIT_RUN": str(DEMO / "run"), "DETKIT_IMAGES": str(DEMO / "shapes" / "JPEGImages")}
    os.environ.update(environment, PYTHONPATH=str(REPOSITORY))
    for path in notebooks():
        target = EXECUTED / path.name
        if target.is_file() and target.stat().st_mtime > max(changed, path.stat().st_mtime):
            continue
        if not DEMO.is_dir():
            places = ["--output", str(DEMO / "run"), "--data_path", str(DEMO / "shapes")]
            subprocess.run([sys.executable, "-m", "detkit", "demo", "--fast", *places], check=True, cwd=BUILD)
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=60 * MINUTES, resources={"metadata": {"path": str(REPOSITORY)}})
        client.execute()
        nbformat.write(notebook, target)
        print(f"{path.name}: executed in {time.monotonic() - start:.0f} s", flush=True)


def pages() -> tuple[dict[str, str], dict[str, bytes]]:
    """Path -> Markdown of the pages, and path -> bytes of their pictures; without outputs where none were made."""
    texts, pictures = {}, {}
    rows = []
    for path in notebooks():
        executed = EXECUTED / path.name
        notebook = nbformat.read(executed if executed.is_file() else path, as_version=4)
        text, resources = MarkdownExporter().from_notebook_node(notebook)
        for name, content in resources["outputs"].items():
            pictures[f"notebooks/{path.stem}_{name}"] = content
            text = text.replace(f"]({name})", f"]({path.stem}_{name})")
        text = without_styles(text)
        title = re.search(r"^# (.*)$", text, re.MULTILINE)
        rows.append(f"- [{title[1] if title else path.stem}]({path.stem}.md)")
        note = (
            f'!!! note ""\n\n    This page is the notebook `notebooks/{path.name}` as it was executed for this site.\n'
        )
        texts[f"notebooks/{path.stem}.md"] = text.replace("\n", f"\n\n{note}\n", 1)
    texts["notebooks/index.md"] = (
        "# Notebooks\n\nEach runs in a few minutes on two cores, on a machine without a GPU. Start one with "
        "`jupyter lab notebooks/`, in an environment that has detkit and jupyterlab.\n\n" + "\n".join(rows) + "\n"
    )
    return texts, pictures


def with_notebooks(markdown: str, texts: Mapping[str, str]) -> str:
    """The text of a page with links in the place of ``<!-- notebooks: 04 05 -->``, to those of these that there are.

    Below each link stands the first picture that the notebook draws.
    """

    def links(match: re.Match[str]) -> str:
        lines = []
        for number in match[1].split():
            for page, text in texts.items():
                if page.startswith(f"notebooks/{number}_"):
                    title = re.search(r"^# (.*)$", text, re.MULTILINE)
                    picture = re.search(r"!\[[^\]]*\]\((\S+\.png)\)", text)
                    name = title[1] if title else page
                    lines.append(f"In pictures: [{name}]({page})")
                    lines += [f"[![{name}](notebooks/{picture[1]})]({page})"] if picture else []
        return "\n\n".join(lines)

    return re.sub(r"<!-- notebooks: ([\d ]+) -->", links, markdown)


def without_styles(text: str) -> str:
    """The text without the style sheets that pandas writes beside each table."""
    return re.sub(r"<style scoped>.*?</style>\n", "", text, flags=re.DOTALL)


if __name__ == "__main__":
    execute()
