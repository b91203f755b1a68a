"""The report as its readers meet it: in a browser, on a phone, by keyboard, in the dark and on paper."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests import reports
from tests.browser import launch_browser

PATIENCE_MS = 60_000
SECTIONS = ("data", "clips", "training", "samples", "results", "numbers")
LIGHT_TEXT, LIGHT_LINE = 4.5, 3.0  # WCAG 2's least contrast, of text and of what is drawn


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launch_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of everything, with names that want to run a script."""
    return reports.page(tmp_path_factory.mktemp("report"))


@contextlib.contextmanager
def opened(chromium: Browser, report: Path, **like: Any) -> Iterator[Page]:
    """The page in a browser of its own, which may neither complain nor ask for anything but the file."""
    context = chromium.new_context(**like)
    context.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    asked: list[str] = []
    context.on("console", lambda said: complaints.append(said.text))
    context.on("weberror", lambda found: complaints.append(str(found.error)))
    context.on("request", lambda request: request.url.startswith("data:") or asked.append(request.url))
    page = context.new_page()
    page.goto(report.as_uri())
    yield page
    context.close()
    assert complaints == [] and asked == [report.as_uri()]


@pytest.fixture
def page(chromium: Browser, report: Path) -> Iterator[Page]:
    with opened(chromium, report, viewport={"width": 1280, "height": 900}) as page:
        yield page


def order(table: Locator) -> list[str]:
    return table.locator("tbody tr th:first-child").all_inner_texts()


def test_a_table_sorts_by_mouse_and_by_keyboard_and_says_how(page: Page) -> None:
    table = page.get_by_role("region", name="In the masked box", exact=True).locator("table")
    heading = table.locator("th", has_text="PSNR")
    before = order(table)

    def values() -> list[float]:
        told = table.locator("tbody tr td:nth-child(2)")
        return [
            float(value) for value in told.evaluate_all("cells => cells.map(c => c.dataset.value)") if value
        ]

    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True) and len(values()) == 4
    assert order(table)[-1] == reports.SWAPPED, "what is not computed stays last"
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values()) and order(table)[-1] == reports.SWAPPED
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") is None
    assert order(table) == sorted(before, key=str.casefold) != before


def test_a_picture_enlarges_and_escape_closes_it(page: Page) -> None:
    dialog = page.get_by_role("dialog")
    for place in ("#data .figures", "#clips", "#samples", "#results"):
        picture = page.locator(f"{place} .picture").first
        small = picture.locator("img, svg[role=img]").last.bounding_box()
        picture.click()
        large = dialog.locator("img, svg[role=img]").last.bounding_box()
        assert small and large and large["width"] > 1.05 * small["width"]
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(picture).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_names_of_strangers_run_nothing(page: Page) -> None:
    assert page.locator("[onerror]").count() == 0
    expect(page.locator("#data").get_by_text(reports.HOSTILE, exact=True).first).to_be_visible()


def test_every_picture_is_drawn(page: Page) -> None:
    widths = page.locator("main img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) > 20 and min(widths) > 0


def test_a_phone_has_nothing_to_scroll_sideways(chromium: Browser, report: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with opened(chromium, report, **phone) as page:
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.locator("#results .picture").first.tap()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_paper_has_all_sections_unfolded_and_light(chromium: Browser, report: Path) -> None:
    with opened(chromium, report, color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        for section in SECTIONS:
            expect(page.locator(f"#{section} h2")).to_be_visible()
        assert page.locator("details:not([open])").count() == 0
        expect(page.get_by_text("recipe.optim.learning_rate")).to_be_visible()
        expect(page.locator("nav")).to_be_hidden()
        assert (
            page.locator("section").first.evaluate("s => getComputedStyle(s).backgroundColor")
            == "rgb(255, 255, 255)"
        )
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details:not([open])").count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_lines_stand_out_in_the_light_and_in_the_dark(
    chromium: Browser, report: Path, scheme: str
) -> None:
    with opened(chromium, report, color_scheme=scheme) as page:
        style = "name => getComputedStyle(document.documentElement).getPropertyValue(name)"

        def luminance(name: str) -> float:
            color = page.evaluate(style, name)
            channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        def contrast(name: str, ground: str) -> float:
            dark, light = sorted((luminance(name), luminance(ground)))
            return (light + 0.05) / (dark + 0.05)

        for ground in ("--paper", "--ground"):
            assert min(contrast(name, ground) for name in ("--ink", "--soft", "--accent")) >= LIGHT_TEXT
        assert contrast("--good", "--good-ground") >= LIGHT_TEXT
        assert contrast("--warn", "--warn-ground") >= LIGHT_TEXT
        assert min(contrast(f"--series-{i}", "--paper") for i in range(1, 7)) >= LIGHT_LINE
