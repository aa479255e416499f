"""The repository's own files as pages, and the links between them.

A page of `docs/` links to files as they lie in the repository (`../configs/faster_rcnn/laptop.yaml`), so that it can be
read there too. On the site these files are pages, and the links lead to them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build" / "docs"
#: Files that are pages under another name.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "extend.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/scripts.md",
    "data/README.md": "data-folder.md",
    "configs": "configs.md",
    "notebooks": "notebooks/index.md",
    "docs": "index.md",
    "benchmarks": "benchmarks/scripts.md",
}
#: Files that become pages with their text as it is. README.md does not: index.md is the site's own.
TEXTS = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "data/README.md")
#: A link (its text and its target), or code, in which there are no links.
LINK = re.compile(
    r"^```.*?^```|`[^`\n]+`|(?<!\\)(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)", re.MULTILINE | re.DOTALL
)


def page_of(path: str) -> str | None:
    """The page that a file of the repository is on the site, by their paths; None if it is none."""
    path = path.rstrip("/")
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if re.fullmatch(r"configs/\w+/\w+\.yaml", path):
        return path.removesuffix(".yaml") + ".md"
    if re.fullmatch(r"notebooks/\w+\.ipynb", path):
        return path.removesuffix(".ipynb") + ".md"
    if path.startswith("benchmarks/results/"):
        return path
    return None


def source_of(page: str) -> str:
    """The file of the repository that a page was made of."""
    for path, name in PAGES.items():
        if name == page and path.endswith(".md") and path != "README.md":
            return path
    if page.startswith("benchmarks/results/"):
        return page
    if page.startswith("notebooks/"):
        return page.removesuffix(".md") + ".ipynb"
    return f"docs/{page}"


def with_links(markdown: str, page: str) -> str:
    """The text of a page, its links to files of the repository turned into links to their pages.

    Raises:
        ValueError: a link to a file that is not there.
    """
    source = source_of(page)
    if not (REPOSITORY / source).is_file():
        return markdown  # generated, with links between pages

    def replaced(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if target is None or re.match(r"[a-z]+:|#", target):
            return match[0]
        file, hash_sign, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), file))
        if path.startswith("docs/") and not source.startswith("docs/"):
            pass
        elif path.startswith(("docs/", "..")) or re.fullmatch(r"notebooks/\w+_output_\w+\.\w+", path):
            return match[0]  # between pages, or to a picture that a notebook drew
        found = page_of(path)
        if found is None:
            if not (REPOSITORY / path).exists():
                raise ValueError(f"{source}: there is no {path}, to which it links")
            return f"`{path}`"  # a file of the code
        return f"{text}({posixpath.relpath(found, posixpath.dirname(page) or '.')}{hash_sign}{anchor})"

    return LINK.sub(replaced, markdown)


def pages() -> dict[str, str]:
    """Path of a page -> its Markdown, of the files that are pages as they are."""
    found = {PAGES[path]: (REPOSITORY / path).read_text(encoding="utf-8") for path in TEXTS}
    for file in sorted((REPOSITORY / "benchmarks" / "results").glob("*.md")):
        found[f"benchmarks/results/{file.name}"] = file.read_text(encoding="utf-8")
    return found | config_pages()


def with_results(markdown: str) -> str:
    """The text of a page with a list of the stored results in the place of the comment ``<!-- results -->``."""
    if "<!-- results -->" not in markdown:
        return markdown
    found = sorted((REPOSITORY / "benchmarks" / "results").glob("*.md"))
    titles = [(file, file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")) for file in found]
    lines = [f"- [{title}](../benchmarks/results/{file.name})" for file, title in titles]
    return markdown.replace("<!-- results -->", "\n".join(lines))


def files() -> dict[str, Path]:
    """Path on the site -> a file that is copied: what the pages of results link to."""
    results = (REPOSITORY / "benchmarks" / "results").iterdir()
    return {f"benchmarks/results/{file.name}": file for file in results if file.suffix != ".md"}


def config_pages() -> dict[str, str]:
    """The configs, each with its text, and their list."""
    found: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    for file in sorted((REPOSITORY / "configs").glob("*/*.yaml")):
        name = file.relative_to(REPOSITORY / "configs").with_suffix("").as_posix()
        text = file.read_text(encoding="utf-8")
        about = " ".join(re.match(r"(#.*\n)*", text)[0].replace("#", "").split())  # type: ignore[index]
        cls = yaml.safe_load(text)["model"]["class_path"]
        found[f"configs/{name}.md"] = (
            f"# {name}\n\n{about}\n\n```\ndetkit fit --config {name}\n```\n\n"
            f"Its model is a [{cls}](../../settings/{cls.lower()}.md). Any value can be set on the command line "
            f"(`--model.optim.lr 0.01`).\n\n```yaml\n{text}```\n"
        )
        listed.setdefault(name.partition("/")[0], []).append(f"| [`{name}`](configs/{name}.md) | {about} |")
    text = (
        "# Recipes\n\nThe configs of the project. They are found by their names, also after `pip install`: "
        "`detkit fit --config faster_rcnn/laptop --data data/my_photos`. "
        "[`detkit recipe`](training.md#a-recipe-for-your-data-and-machine) writes one for your data and machine.\n"
    )
    for folder, rows in listed.items():
        text += f"\n## {folder}\n\n| config | for |\n| --- | --- |\n" + "\n".join(rows) + "\n"
    return found | {"configs.md": text}
