"""The report in a browser: by mouse and keyboard, on a phone, in the dark scheme and in print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests import reports
from tests.browser import launch_browser

TIMEOUT_MS = 60_000
SECTIONS = ("data", "clips", "training", "samples", "results", "cards", "parameters")
MIN_TEXT_CONTRAST, MIN_LINE_CONTRAST = 4.5, 3.0  # by WCAG 2


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launch_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all inputs, and names that try to inject a script."""
    return reports.write_page(tmp_path_factory.mktemp("report"))


@contextlib.contextmanager
def open_page(chromium: Browser, report: Path, **options: Any) -> Iterator[Page]:
    """Open the page in a new browser context. Fails on console messages, errors and other requests."""
    context = chromium.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    messages: list[str] = []
    requests: list[str] = []
    context.on("console", lambda message: messages.append(message.text))
    context.on("weberror", lambda error: messages.append(str(error.error)))
    context.on("request", lambda request: request.url.startswith("data:") or requests.append(request.url))
    page = context.new_page()
    page.goto(report.as_uri())
    yield page
    context.close()
    assert messages == [] and requests == [report.as_uri()]


@pytest.fixture
def page(chromium: Browser, report: Path) -> Iterator[Page]:
    with open_page(chromium, report, viewport={"width": 1280, "height": 900}) as page:
        yield page


def read_row_names(table: Locator) -> list[str]:
    return table.locator("tbody tr th:first-child").all_inner_texts()


def test_a_table_sorts_by_mouse_and_keyboard_and_sets_aria_sort(page: Page) -> None:
    table = page.get_by_role("region", name="In the masked box", exact=True).locator("table")
    heading = table.locator("th", has_text="PSNR")
    before = read_row_names(table)

    def read_values() -> list[float]:
        cells = table.locator("tbody tr td:nth-child(2)")
        return [
            float(value) for value in cells.evaluate_all("cells => cells.map(c => c.dataset.value)") if value
        ]

    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert read_values() == sorted(read_values(), reverse=True) and len(read_values()) == 4
    assert read_row_names(table)[-1] == reports.SWAPPED, "rows without a value stay last"
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert read_values() == sorted(read_values()) and read_row_names(table)[-1] == reports.SWAPPED
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") is None
    assert read_row_names(table) == sorted(before, key=str.casefold) != before


def test_a_click_enlarges_an_image_and_escape_closes_it(page: Page) -> None:
    dialog = page.get_by_role("dialog")
    for section in ("#data .figures", "#clips", "#samples", "#results"):
        picture = page.locator(f"{section} .picture").first
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


def test_hostile_names_run_no_script(page: Page) -> None:
    assert page.locator("[onerror]").count() == 0
    expect(page.locator("#data").get_by_text(reports.HOSTILE, exact=True).first).to_be_visible()


def test_every_image_is_decoded(page: Page) -> None:
    widths = page.locator("main img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) > 20 and min(widths) > 0


def test_a_phone_needs_no_horizontal_scrolling(chromium: Browser, report: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with open_page(chromium, report, **phone) as page:
        page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.locator("#results .picture").first.tap()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_print_shows_all_sections_unfolded_and_in_light_colours(chromium: Browser, report: Path) -> None:
    with open_page(chromium, report, color_scheme="dark") as page:
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
def test_text_and_lines_have_enough_contrast_in_both_schemes(
    chromium: Browser, report: Path, scheme: str
) -> None:
    with open_page(chromium, report, color_scheme=scheme) as page:
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
            assert (
                min(contrast(name, ground) for name in ("--ink", "--soft", "--accent")) >= MIN_TEXT_CONTRAST
            )
        assert contrast("--good", "--good-ground") >= MIN_TEXT_CONTRAST
        assert contrast("--warn", "--warn-ground") >= MIN_TEXT_CONTRAST
        assert min(contrast(f"--series-{i}", "--paper") for i in range(1, 7)) >= MIN_LINE_CONTRAST
