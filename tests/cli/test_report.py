"""The page: that it holds everything, that nothing in it comes from elsewhere, and that a real browser shows it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from depthlab import figures
from depthlab.cli import experiments
from depthlab.cli.report import drawn, evidence

RESULTS = Path(__file__).parents[2] / "results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SAFE = ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")


@pytest.fixture(scope="module")
def chapters() -> list[figures.Chapter]:
    names = [name for name in experiments.names() if (RESULTS / name / "readings.csv.gz").exists()]
    return [figures.chapter(RESULTS / name, experiments.script(name)) for name in names]


class Addresses(HTMLParser):
    """All that a page would load or link to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "poster")]


def test_the_page_needs_nothing_else(chapters: list[figures.Chapter]) -> None:
    html = figures.page(chapters)
    parser = Addresses()
    parser.feed(html)
    assert len(parser.found) >= 2 * len(chapters)
    assert all(address.startswith(("data:", "#")) for address in parser.found)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", html)


def test_the_page_holds_every_claim_and_number(chapters: list[figures.Chapter]) -> None:
    html = figures.page(chapters)
    for chapter in chapters:
        assert f'<section id="{chapter.name}">' in html
        assert chapter.provenance["commit"] in html
        for claim in chapter.claims:
            assert figures.claims_table(chapters).count(claim.statement) >= 1
        assert html.count(chapter.command) == 1
    cells = sum(len(chapter.rows) * len(chapter.heads) for chapter in chapters)
    claims = sum(len(chapter.claims) for chapter in chapters)
    assert html.count("<td") == cells + 7 * claims


def test_what_is_not_html_is_escaped(chapters: list[figures.Chapter]) -> None:
    first = chapters[0]
    table = first.table.assign(word="<script>alert(1)</script>")
    html = figures.page([figures.Chapter(**{**vars(first), "table": table, "about": ["a < b & c"]})])
    assert "<script>alert" not in html
    assert "a &lt; b &amp; c" in html


def test_cost_and_command_are_told_as_one_types_them(chapters: list[figures.Chapter]) -> None:
    origin = {
        "overrides": ["seed=0", "model.depth=5"],
        "scale": "smoke",
        "runs": {"count": 3, "process_seconds": 7200.0, "threads": [1, 2], "devices": ["cpu"]},
    }
    chapter = figures.Chapter(**{**vars(chapters[0]), "provenance": origin})
    assert chapter.command == f'make {chapter.name} SCALE=smoke ARGS="seed=0 model.depth=5"'
    assert chapter.cost == "3 runs, 4.0 core-hours on cpu"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One experiment that is drawn, and a folder that is none."""
    shutil.copytree(RESULTS / "degradation", tmp_path / "results" / "degradation")
    (tmp_path / "results" / "quickstart").mkdir()
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def test_the_command_writes_page_and_claims(
    depthlab: Callable[..., Any], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# A title\n<!-- claims -->\nold\n<!-- /claims -->\nthe end\n")
    answer = depthlab("report", "--claims", str(readme))
    assert answer.status == 0
    assert answer.out.splitlines()[0] == f"wrote {results / 'report.html'}: 1 figures, 6 claims"
    assert "<title>depthlab" in (results / "report.html").read_text()
    table = figures.claims_table(drawn(results))
    assert readme.read_text() == f"# A title\n<!-- claims -->\n\n{table}\n<!-- /claims -->\nthe end\n"
    shutil.copytree(results / "degradation", results / "quickstart", dirs_exist_ok=True)  # as if it were drawn
    monkeypatch.setattr(experiments, "script", lambda name, script=experiments.script: script("degradation"))
    answer = depthlab("report", "--claims", str(readme))
    assert answer.out.startswith(f"wrote {results / 'report.html'}: 2 figures, 12 claims")
    assert readme.read_text().count("`quickstart`") == 0
    assert readme.read_text().count("| figure") == 1


def test_mistakes_are_told_in_a_line(depthlab: Callable[..., Any], results: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.md").write_text("nothing")
    assert "lacks the lines <!-- claims -->" in depthlab("report", "--claims", str(tmp_path / "plain.md")).error
    assert "takes no settings" in depthlab("report", "scale=smoke").error
    (results / "degradation" / "figure.svg").unlink()
    assert "cannot show what is in" in depthlab("report").error
    shutil.rmtree(results / "degradation")
    assert "nothing is drawn in" in depthlab("report").error


def test_the_readme_holds_the_claims_of_the_results(chapters: list[figures.Chapter]) -> None:
    readme = (RESULTS.parent / "README.md").read_text()
    assert f"<!-- claims -->\n\n{figures.claims_table(evidence(chapters))}\n<!-- /claims -->" in readme


@pytest.fixture(scope="module")
def browser(chapters: list[figures.Chapter], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that shows the page."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("there is no Chromium with its driver")
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(figures.page(chapters), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in (*SAFE, f"user-data-dir={path.parent / 'profile'}", "window-size=1200,900"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        chromium.get(path.as_uri())
        yield chromium
    finally:
        chromium.quit()


@pytest.mark.slow
def test_a_browser_shows_it_without_a_complaint(browser: Any, chapters: list[figures.Chapter]) -> None:
    assert browser.get_log("browser") == []
    widths = browser.execute_script("return [...document.querySelectorAll('section img')].map(i => i.naturalWidth)")
    assert len(widths) == len(chapters)
    assert all(width > 100 for width in widths)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_the_search_box_filters(browser: Any, chapters: list[figures.Chapter]) -> None:
    shown = "return [...document.querySelectorAll('section')].filter(s => s.offsetParent).map(s => s.id)"
    box = browser.find_element("id", "search")
    box.send_keys("textbook unicorn")
    assert browser.execute_script(shown) == []
    assert browser.find_element("id", "nothing").is_displayed()
    box.clear()
    box.send_keys("residual nets do not degrade")
    assert browser.execute_script(shown) == ["degradation"]
    assert browser.find_element("id", "found").text == "1 figures, 1 claims"
    rows = "return [...document.querySelectorAll('#degradation .claims tbody tr')].filter(r => !r.hidden).length"
    assert browser.execute_script(rows) == 1
    box.send_keys("\ue009a\ue000\ue017")  # control-a, delete
    assert browser.execute_script(shown) == [chapter.name for chapter in chapters]


@pytest.mark.slow
def test_tables_sort_by_number_and_figures_enlarge(browser: Any) -> None:
    head = browser.find_element("css selector", "#degradation .claims th:nth-child(3) button")
    numbers = (
        "return [...document.querySelectorAll('#degradation .claims td:nth-child(3)')].map(c => +c.dataset.number)"
    )
    for reverse in (False, True):
        browser.execute_script("arguments[0].click()", head)
        found = browser.execute_script(numbers)
        assert found == sorted(found, reverse=reverse)
    dialog = browser.find_element("tag name", "dialog")
    assert not dialog.is_displayed()
    browser.execute_script("arguments[0].click()", browser.find_element("css selector", "#degradation figure button"))
    assert dialog.is_displayed()
    dialog.click()
    assert not dialog.is_displayed()


@pytest.mark.slow
def test_a_phone_scrolls_tables_and_nothing_else(browser: Any) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_printed_it_shows_all_numbers(browser: Any) -> None:
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert len(json.dumps(printed)) > 100_000
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0
