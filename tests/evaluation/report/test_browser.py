"""The report in a browser: headless Chromium, started once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.evaluation.report.browser import Browser, Page, chromium, find_chromium
from tests.evaluation.report.pages import NASTY, metrics_of, random_set, report, write_images

NAMES = [*NASTY, "cat", "dog", "nowhere"]  # of the last there is no object


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        reason = os.environ.get("DETKIT_NO_CHROMIUM", "")  # set by .ci/run, which tries to install it
        if os.environ.get("CI") and not reason:
            pytest.fail("no Chromium: in CI the test set-up installs it (apt-get install chromium)")
        pytest.skip(f"no Chromium to open the report in (set DETKIT_CHROMIUM, or apt-get install chromium) {reason}")
    with chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, of names as strangers may have them."""
    folder = tmp_path_factory.mktemp("report")
    s = random_set(11, len(NAMES) - 1, images=30)
    images = write_images(folder / "images", s.image_ids[:20])  # the others are missing
    baseline = {**metrics_of(random_set(12, len(NAMES), images=30), NAMES), "data": "Other"}
    report(folder, s, NAMES, images, baseline)
    return folder / "index.html"


@pytest.fixture(scope="module")
def page(browser: Browser, path: Path) -> Page:
    return browser.open(path)


def count(page: Page, selector: str) -> int:
    return page.run(f"document.querySelectorAll({selector!r}).length")


def test_the_page_is_quiet_and_asks_no_network(page: Page) -> None:
    assert page.complaints == []
    assert page.requests == []


def test_table_curves_and_gallery_are_there(page: Page) -> None:
    assert count(page, "#ap-table tbody tr") == len(NAMES)
    assert count(page, "#curves figure.plot svg polyline") == len(NAMES)  # one class has none; and the mean
    assert count(page, "#curves figure.curve") > 5
    assert count(page, "#errors .bars .fill") == 8
    assert count(page, "#confusion svg") == 1
    assert count(page, "#sensitivity table") == 3
    assert count(page, "#gallery .panels") >= 8
    assert count(page, "#gallery .label") > 8
    assert count(page, "#comparison table") == 3
    small = """[...document.querySelectorAll("svg")].filter(svg => !svg.closest("details"))
        .map(svg => svg.getBoundingClientRect()).filter(box => box.width < 100 || box.height < 50).length"""
    assert page.run(small) == 0


def test_photos_are_shown_in_both_panels(page: Page) -> None:
    photos = count(page, "#gallery image[href^='data:image/jpeg']")
    assert photos > 2
    assert count(page, "#gallery use") == photos
    drawn = """[...document.querySelectorAll("#gallery image, #gallery use")]
        .every(each => each.getBoundingClientRect().width > 100)"""
    assert page.run(drawn)
    load = """(async () => {
        const image = new Image();
        image.src = document.querySelector("#gallery image").getAttribute("href");
        await image.decode();
        document.body.dataset.photo = image.naturalWidth;
    })()"""
    page.run(load)
    page.wait_for("document.body.dataset.photo")
    assert int(page.run("document.body.dataset.photo")) > 100


def test_a_heading_sorts_the_table_and_what_is_missing_stays_last(page: Page) -> None:
    column = '[...document.querySelectorAll("#ap-table tbody tr")].map(row => row.cells[{}].textContent.trim())'
    heading = 'document.querySelectorAll("#ap-table thead button")[{}]'
    for number in (1, 3):
        for descending in (True, False):
            page.run(heading.format(number) + ".click()")
            values = page.run(column.format(number))
            known = [float(value.replace(",", "")) for value in values if value != "n/a"]
            assert 3 < len(known) < len(NAMES) + (number == 3)
            assert known == sorted(known, reverse=descending)
            assert values[len(known) :] == ["n/a"] * (len(values) - len(known))
            order = page.run(heading.format(number) + ".closest('th').ariaSort")
            assert order == ("descending" if descending else "ascending")
    page.run(heading.format(0) + ".click()")
    names = page.run(column.format(0))
    assert page.run(f"{names!r}.every((name, i, all) => !i || all[i - 1].localeCompare(name) <= 0)")
    assert count(page, "#ap-table th[aria-sort]") == 1


def test_a_phone_scrolls_in_one_direction(browser: Browser, path: Path) -> None:
    page = browser.open(path, width=390, height=844, phone=True)
    assert page.complaints == []
    assert page.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    wide = """[...document.querySelectorAll("body *")].filter(each => !each.closest(".scroll, svg, details"))
        .filter(each => each.getBoundingClientRect().right > 391).map(each => each.outerHTML.slice(0, 80))"""
    assert page.run(wide) == []
    assert page.run("document.querySelector('#classes .scroll').scrollWidth") > 390


def test_there_is_a_light_and_a_dark_scheme(browser: Browser, page: Page, path: Path) -> None:
    colours = """["body", ".line", ".grid"].map(selector => getComputedStyle(document.querySelector(selector)))
        .flatMap(style => [style.color, style.stroke, style.backgroundColor])"""
    dark = browser.open(path, dark=True)
    different = [a != b for a, b in zip(page.run(colours), dark.run(colours), strict=True)]
    assert different == [True, False, True, True, True, False, True, True, False]


@pytest.mark.parametrize(
    "inside",
    [
        '<script>console.error("oh no")</script>',
        '<img src="https://example.invalid/a.png">',
        '<link rel="stylesheet" href="https://example.invalid/a.css">',
        '<img src="data:image/png;base64,AAAA" onerror="console.error(1)">',
    ],
    ids=["script", "image", "style sheet", "handler"],
)
def test_the_page_s_policy_stops_what_is_foreign(browser: Browser, path: Path, inside: str) -> None:
    page = browser.open(altered(path, lambda text: text.replace("<main>", f"<main>{inside}")))
    assert page.complaints
    assert all("Content Security Policy" in each for each in page.complaints)
    assert page.requests == page.refused


@pytest.mark.parametrize(
    ("inside", "complaint", "request_to"),
    [
        ('<script>console.error("oh no")</script>', "oh no", None),
        ("<script>undefinedName()</script>", "undefinedName", None),
        ('<img src="https://example.invalid/a.png">', "", "https://example.invalid/a.png"),
        ('<script>fetch("http://127.0.0.1:9/a").catch(() => 0)</script>', "", "http://127.0.0.1:9/a"),
    ],
    ids=["console", "exception", "image", "fetch"],
)
def test_without_the_policy_these_tests_would_see_it(
    browser: Browser, path: Path, inside: str, complaint: str, request_to: str | None
) -> None:
    """That the quiet page above is quiet says something only if a loud one is heard."""
    marker = 'http-equiv="Content-Security-Policy"'
    page = browser.open(
        altered(path, lambda text: text.replace(marker, "data-off").replace("<main>", f"<main>{inside}"))
    )
    assert any(complaint in each for each in page.complaints) or not complaint
    assert page.requests == ([request_to] if request_to else [])
    assert page.refused == []


def altered(path: Path, change: Callable[[str], str]) -> Path:
    text = path.read_text(encoding="utf-8")
    assert change(text) != text
    other = path.with_name("altered.html")
    other.write_text(change(text), encoding="utf-8")
    return other
