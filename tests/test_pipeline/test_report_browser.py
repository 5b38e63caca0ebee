"""The page in a real browser, opened from its file with the network off."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.compare import combine_runs
from pipeline.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: install one of {', '.join(NAMES)}"
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory, write_demo_runs):
    """Return the page of six runs, or of those that $NDCAO_PICTURE_RUNS names."""
    folder = tmp_path_factory.mktemp("page")
    named = os.environ.get("NDCAO_PICTURE_RUNS", "").split()
    paths = named or write_demo_runs(folder / "runs", 3)
    return write_report(combine_runs(paths), folder / "report.html").as_uri()


@pytest.fixture
def visit(browser, address):
    """Return a function that opens the page; nothing may be said or asked for."""
    said: list[str] = []

    def open_page(**options):
        context = browser.new_context(**options)
        context.set_offline(True)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: request.url == address or said.append(request.url),
        )
        page.goto(address)
        return page

    yield open_page
    assert said == []
    for context in browser.contexts:
        context.close()


def test_page__opens_offline_and_is_pictured(visit, tmp_path):
    page = visit(viewport={"width": 1280, "height": 1500})
    assert page.locator(".verdict").count() >= 1
    assert page.locator("path.band").count() > 0
    assert page.locator("#activity-timeline svg path").count() > 0
    pictures = Path(os.environ.get("NDCAO_PICTURES") or tmp_path)
    page.screenshot(path=pictures / "report.png")
    section = page.locator("section[aria-labelledby=activity-title]")
    section.screenshot(path=pictures / "report-asynchrony.png")
    for name in ("report.png", "report-asynchrony.png"):
        assert (pictures / name).stat().st_size > 10_000


def test_selector__changes_the_label_of_the_axis(visit):
    page = visit()
    chart = page.locator("#chart-test_accuracy svg")
    for value, label in (
        ("update", "Updates per node"),
        ("samples", "Samples seen"),
        ("loss_values", "Loss values"),
        ("bytes", "Bytes moved"),
        ("wall_time", "Wall time (s)"),
    ):
        page.locator(f"#axes input[value={value}]").check(force=True)
        assert chart.locator("text").last.text_content() == label
        assert label.lower() in chart.get_attribute("aria-label")


def test_table__is_sorted_by_click_and_by_key(visit):
    page = visit()
    column = page.locator("#methods thead th").nth(5)

    def values():
        cells = page.locator("#methods tbody tr td:nth-child(6)").all()
        return [float(cell.get_attribute("data-value")) for cell in cells]

    assert page.locator("#methods th[aria-sort]").count() == 1
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    column.locator("button").press("Enter")
    assert column.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    assert page.locator("#methods th[aria-sort]").count() == 1


def test_asynchrony__charts_follow_the_run_that_is_chosen(visit):
    page = visit()
    timeline = page.locator("#activity-timeline svg")
    for index in range(2):
        page.locator("#activity-run").select_option(index=index)
        chosen = page.locator("#activity-run option").nth(index).text_content()
        run_id = chosen.split(" — ")[1]
        assert run_id in timeline.get_attribute("aria-label")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_page__is_readable_on_a_phone_and_in_both_schemes(visit, scheme, width):
    page = visit(viewport={"width": width, "height": 800}, color_scheme=scheme)
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0
    contrast = page.evaluate(
        """() => {
          const light = (text) => {
            const [r, g, b] = text.match(/[0-9.]+/g).map((v) => {
              const c = v / 255;
              return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const card = light(getComputedStyle(
            document.querySelector("section")).backgroundColor);
          return [...document.querySelectorAll("p, td, th, h1, h2, h3")].map((n) => {
            if (n.classList.contains("warn") || n.closest("header")) return 99;
            const ink = light(getComputedStyle(n).color);
            return (Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05);
          }).reduce((a, b) => Math.min(a, b));
        }"""
    )
    assert contrast >= 4.5


def test_page__prints_in_light_colours_from_a_dark_screen(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert ink == "rgb(22, 32, 43)"


def test_charts__all_have_alternative_texts(visit):
    page = visit()
    labels = page.locator("main figure svg").evaluate_all(
        "nodes => nodes.map((n) => [n.getAttribute('role'),"
        " n.getAttribute('aria-label')])"
    )
    assert len(labels) == 6
    assert all(role == "img" and len(label) > 20 for role, label in labels)
