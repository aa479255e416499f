"""The built site in a real browser: `python -m docs.generate.check build/site`.

Each page is opened in headless Chromium, as wide as a desk's screen and as a phone (390 pixels). It fails where a page
has an error in its console, asks the network, shows a picture that does not load, links to a page or a heading that is
not there, or is wider than the phone. The search is tried once.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

from tests.evaluation.report.browser import Browser, Page, chromium, find_chromium

PHONE = 390
LINKS = """[...document.querySelectorAll("a[href]")].map(each => each.href)"""
IDS = """[...document.querySelectorAll("[id], a[name]")].map(each => each.id || each.name)"""
BROKEN = """(async () => {
    const pictures = [...document.querySelectorAll("img")];
    pictures.forEach(each => each.loading = "eager");
    await Promise.all(pictures.map(each => each.decode().catch(() => 0)));
    document.body.dataset.broken = JSON.stringify(pictures.filter(each => !each.naturalWidth).map(each => each.src));
})()"""
SEARCH = """(() => {
    const input = document.querySelector("[data-md-component=search-query]");
    input.focus();
    input.value = WORD;
    input.dispatchEvent(new Event("keyup", {bubbles: true}));
    input.dispatchEvent(new Event("input", {bubbles: true}));
})()"""
#: What is below a heading that scrolls by itself may be wider than the screen.
WIDE = """[...document.querySelectorAll("article *")]
    .filter(each => !each.closest(".md-typeset__scrollwrap, .md-typeset__table, pre, .highlight, svg, table"))
    .filter(each => each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 100))"""


def check(site: Path) -> list[str]:
    """What is wrong with a site, one line each."""
    program = find_chromium()
    if program is None:
        return ["no Chromium: install it (apt-get install chromium) or set DETKIT_CHROMIUM to its path"]
    pages = sorted(path for path in site.rglob("*.html") if path.name != "404.html")
    wrong: list[str] = []
    links: dict[str, list[str]] = {}
    ids: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as profile, chromium(program, Path(profile)) as browser:
        for path in pages:
            name = path.relative_to(site).as_posix()
            page = browser.open(path)
            wrong += [f"{name}: {each}" for each in quiet(page, site)]
            links[page.url], ids[page.url] = page.run(LINKS), set(page.run(IDS))
            close(browser, page)
            page = browser.open(path, width=PHONE, height=844, phone=True)
            wide = page.run("document.documentElement.scrollWidth")
            if wide > PHONE:
                wrong.append(f"{name}: {wide} pixels wide on a phone")
            wrong += [f"{name}: wider than a phone: {each}" for each in page.run(WIDE)]
            close(browser, page)
        wrong += search(browser, site)
    return wrong + dead(links, ids)


def close(browser: Browser, page: Page) -> None:
    """Close a page: a hundred open ones take gigabytes."""
    browser.call("Page.close", session=page.session)


def quiet(page: Page, site: Path) -> list[str]:
    """Complaints of the console, requests that leave the site's folder, and pictures that do not load."""
    page.run(BROKEN)
    page.wait_for("document.body.dataset.broken")
    broken = page.run("JSON.parse(document.body.dataset.broken)")
    foreign = [each for each in page.requests if not each.startswith((site.resolve().as_uri(), "blob:"))]
    return [
        *page.complaints,
        *(f"asks for {each}" for each in foreign),
        *(f"the picture {each} does not load" for each in broken),
    ]


def search(browser: Browser, site: Path, word: str = "suppression") -> list[str]:
    """Whether the search finds a word, from the disk."""
    page = browser.open(site / "index.html")
    page.run(SEARCH.replace("WORD", repr(word)))
    try:
        page.wait_for("document.querySelectorAll('.md-search-result__link').length > 3")
    except AssertionError:
        return [f"the search does not find {word!r}"]
    return []


def dead(links: dict[str, list[str]], ids: dict[str, set[str]]) -> list[str]:
    """Links within the site to a file or a heading that is not there."""
    wrong = []
    for source, targets in links.items():
        for target in sorted(set(targets)):
            url, anchor = urldefrag(urljoin(source, target))
            if not url.startswith("file:"):
                continue
            path = Path(unquote(urlparse(url).path))
            if not path.is_file():
                wrong.append(f"{source}: links to {path}, which is not there")
            elif anchor and url in ids and unquote(anchor) not in ids[url] and not anchor.startswith("__"):
                wrong.append(f"{source}: links to {path}#{anchor}, a heading that is not there")
    return wrong


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = check(folder)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(list(folder.rglob('*.html')))} pages in a browser: {len(found) or 'nothing'} wrong")
    sys.exit(bool(found))
