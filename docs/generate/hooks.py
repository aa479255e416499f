"""MkDocs hooks: the generated pages, their place in the navigation, and the links to files of the repository."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[2]))

from docs.generate import commands, notebooks, reference, repository, settings

_texts: dict[str, str] = {}
_pictures: dict[str, bytes] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the generated pages, and put each list of them where the navigation says `generated: FOLDER`."""
    _texts.clear()
    _pictures.clear()
    for module in (commands, settings, reference, repository):
        _texts.update(module.pages())
    texts, pictures = notebooks.pages()
    _texts.update(texts)
    _pictures.update(pictures)
    config.nav = [_filled(each) for each in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files that they link to."""
    for path, text in _texts.items():
        files.append(File.generated(config, path, content=text))
    for path, content in _pictures.items():
        files.append(File.generated(config, path, content=content))
    for path, file in repository.files().items():
        files.append(File.generated(config, path, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in lists, and turn links to files of the repository into links to their pages."""
    markdown = notebooks.with_notebooks(repository.with_results(markdown), _texts)
    return repository.with_links(markdown, page.file.src_uri)


def _filled(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _below(content) for title, content in entry.items()}
    return entry


def _below(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    result: list[Any] = []
    for each in content:
        if isinstance(each, dict) and "generated" in each:
            folder = each["generated"]
            pages = [path for path in _texts if path.startswith(f"{folder}/")]
            result += sorted(pages, key=lambda path: (not path.endswith("index.md"), list(_texts).index(path)))
        else:
            result.append(_filled(each))
    return result
