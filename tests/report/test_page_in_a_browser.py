"""The page as a real browser sees it, with mouse and keyboard. Screenshots go to `.artifacts/`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.report import Source, write_comparison, write_report
from stillhouse.spec.records import SweepFacts, TrialRecord

pytestmark = [pytest.mark.browser, pytest.mark.slow]

Facts = Callable[..., SweepFacts]
Sweep = Callable[..., list[TrialRecord]]
Middle = Callable[[Any, str], tuple[float, float]]
READY = "document.documentElement?.dataset.ready === 'yes'"
POINTS = "[...document.querySelectorAll('#tradeoff .points path.point')]"


@pytest.fixture(scope="module")
def address(facts: Facts, sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep's page, each of its trials with the address of a run."""
    records = sweep(trials_per_pair=2)
    runs = {record.trial.key: f"http://127.0.0.1:9/#/runs/{record.trial.key}" for record in records}
    return write_report(facts(), records, tmp_path_factory.mktemp("page"), (), runs).page.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    """That page, open in the browser."""
    browser.open(address)
    browser.wait(READY)
    return browser


def pairs(records: list[TrialRecord]) -> set[tuple[str, str]]:
    return {(each.trial.method, each.trial.student.name) for each in records if each.status == "finished"}


def test_the_scatter_has_a_point_for_every_configuration_and_the_console_stays_empty(page: Any, sweep: Sweep) -> None:
    records = sweep(trials_per_pair=2)
    finished = {
        (each.trial.method, each.trial.student.name, str(each.trial.hyperparameters))
        for each in records
        if each.status == "finished"
    }
    drawn = page.run("document.querySelector('#tradeoff').data.filter((t) => t.customdata).map((t) => t.x.length)")
    assert sum(drawn) == len(finished) + 1  # and the teacher
    assert page.run("document.querySelectorAll('#tradeoff .yerror').length") == len(pairs(records))
    assert page.run(f"{POINTS}.length") >= len(finished) + 1
    assert page.console == []


def test_hovering_a_point_shows_its_settings(page: Any, middle_of: Middle) -> None:
    page.move(*middle_of(page, f"{POINTS}.at(-1)"))
    page.wait("document.querySelector('#tradeoff .hoverlayer').textContent.length > 0")
    assert "large" in page.run("document.querySelector('#tradeoff .hoverlayer').textContent")
    page.screenshot("report-hover")


def test_a_methods_check_box_takes_its_points_away_and_a_size_moves_them(page: Any) -> None:
    before = page.run(f"{POINTS}.length")
    page.run("document.querySelector('input[data-kind=method][value=hints]').click()")
    page.wait(f"{POINTS}.length < {before}")
    page.run("document.querySelector('input[name=size-axis][value=macs]').click()")
    page.wait("document.querySelector('#tradeoff .xtitle').textContent.startsWith('Multiply')")
    assert page.console == []


def test_one_click_takes_all_methods_away_and_another_brings_them_back(page: Any) -> None:
    before = page.run("document.querySelectorAll('#tradeoff .yerror').length")
    page.run("document.querySelector('button[data-none=method]').click()")
    page.wait("document.querySelectorAll('#tradeoff .yerror').length === 0")
    page.run("document.querySelector('button[data-all=method]').click()")
    page.wait(f"document.querySelectorAll('#tradeoff .yerror').length === {before}")


def test_gains_are_sorted_by_the_student_that_is_clicked(page: Any) -> None:
    page.run("document.querySelectorAll('table.heat thead button')[1].click()")
    gains = page.run("[...document.querySelectorAll('table.heat tbody tr')].map((row) => row.cells[1].dataset.v)")
    numbers = [float(each) for each in gains if each is not None]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 2


def test_the_filter_leaves_the_rows_that_hold_every_word(page: Any, sweep: Sweep) -> None:
    page.run("document.querySelector('#filter').value = 'peers lenet'")
    page.run("document.querySelector('#filter').dispatchEvent(new Event('input'))")
    shown = page.run("[...document.querySelectorAll('#trials-table tbody tr')].filter((row) => !row.hidden).length")
    wanted = [each for each in sweep(trials_per_pair=2) if each.trial.method == "peers" and each.trial.student.name == "lenet"]
    assert shown == len(wanted)


def test_the_arrow_keys_walk_the_points_and_enter_opens_the_run(page: Any) -> None:
    page.run("document.querySelector('#tradeoff').focus()")
    said = []
    for _ in range(3):
        page.press("ArrowRight")
        said.append(page.run("document.querySelector('#tradeoff-point').textContent"))
    assert len(set(said)) == 3
    assert all("parameters" in each for each in said)
    page.press("Enter")
    key = said[-1].rpartition("trial ")[2].partition(",")[0]
    page.wait("true")
    assert any(key in target["url"] for target in page.targets() if target["type"] == "page")


def test_every_control_is_reached_with_the_tab_key(page: Any) -> None:
    seen = set()
    for _ in range(100):
        page.press("Tab")
        seen.add(page.run("document.activeElement.id || document.activeElement.name || document.activeElement.className"))
    assert {"theme", "log", "tradeoff", "size-axis", "score-axis", "filter", "skip"} <= seen


@pytest.mark.parametrize(("name", "width", "dark"), [("light", 1280, False), ("dark", 1280, True), ("phone", 390, False)])
def test_the_page_fits_its_window(page: Any, address: str, name: str, width: int, dark: bool) -> None:
    page.open(address, width=width, height=900, dark=dark)
    page.wait(READY)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.size(width, page.run("document.documentElement.scrollHeight"))
    page.screenshot(f"report-{name}")
    assert page.console == []


def test_the_page_prints_without_a_word_of_the_figures(page: Any) -> None:
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.call("Page.printToPDF", printBackground=True)["data"]
    page.size(600, 900)
    page.wait("document.querySelector('#tradeoff .xtitle')")
    drawn = "[...document.querySelectorAll('svg *')].flatMap((each) => [...each.attributes]).map((each) => each.value)"
    assert page.run(f"{drawn}.filter((text) => /Infinity|NaN/.test(text))") == []
    assert page.console == []


def test_the_learning_curves_open_on_the_student_of_the_answer(page: Any) -> None:
    answer = page.run("document.querySelector('.card.first h3').textContent")
    assert answer.partition(",")[0] == page.run("document.querySelector('select[data-figures=curves]').value")


def test_several_sweeps_are_drawn_in_one_scatter(browser: Any, facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    sources = [
        Source(facts=facts(name=name), records=sweep(trials_per_pair=1, seed=number)) for number, name in enumerate("ab")
    ]
    browser.open(write_comparison(sources, tmp_path / "out").page.as_uri())
    browser.wait(READY)
    expected = sum(len(pairs(list(source.records))) for source in sources)
    assert browser.run("document.querySelectorAll('#tradeoff .yerror').length") == expected
    browser.run("document.querySelector('input[data-kind=sweep][value=a]').click()")
    browser.wait(f"document.querySelectorAll('#tradeoff .yerror').length === {len(pairs(list(sources[1].records)))}")
    assert browser.console == []
    browser.screenshot("report-comparison")


def test_a_click_colours_the_points_by_route(browser: Any, facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    def of_a_route(record: TrialRecord) -> TrialRecord:
        compress = [{"cut": {"ratio": 0.5}}] if record.trial.student.name == "lenet" else []
        student = record.trial.student.model_copy(update={"compress": compress})
        return record.model_copy(update={"trial": record.trial.model_copy(update={"student": student})})

    records = [of_a_route(record) for record in sweep(trials_per_pair=1)]
    browser.open(write_report(facts(), records, tmp_path / "out").page.as_uri())
    browser.wait(READY)
    colours = (
        "JSON.stringify([...new Set(document.querySelector('#tradeoff').data"
        ".filter((t) => t.error_y).map((t) => t.marker.color + ' ' + t.error_y.color))])"
    )
    by_method = json.loads(browser.run(colours))
    browser.run("document.querySelector('input[name=colours][value=route]').click()")
    browser.wait(f"JSON.parse({colours}).length === 2")
    by_route = json.loads(browser.run(colours))
    assert len(by_method) == len({method for method, _ in pairs(records)})
    assert all(point == error for point, error in (each.split() for each in by_route))
    visible = "getComputedStyle(document.querySelector('.swatch.of-{kind}')).display"
    assert browser.run(visible.format(kind="route")) == "inline-block"
    assert browser.run(visible.format(kind="style")) == "none"
    browser.run("document.querySelector('input[data-kind=route][value=cut]').click()")
    browser.wait(f"document.querySelectorAll('#tradeoff .yerror').length < {len(pairs(records))}")
    assert browser.console == []
    browser.screenshot("report-routes")


def test_a_page_of_ten_thousand_trials_draws_scrolls_and_filters(
    browser: Any, facts: Facts, sweep: Sweep, tmp_path: Path
) -> None:
    records = sweep(trials_per_pair=342)[:10_000]
    browser.open(write_report(facts(), records, tmp_path / "out").page.as_uri())
    browser.wait(READY)
    drawn = browser.run("document.querySelector('#tradeoff').data.filter((t) => t.customdata).map((t) => t.x.length)")
    # Configurations beyond 1,500 winners and 1,500 others are left out, with a word on it; the teacher is there.
    assert len(pairs(records)) < sum(drawn) <= 3001
    assert browser.run("document.querySelectorAll('#tradeoff .yerror').length") == len(pairs(records))
    assert "configurations are drawn" in browser.run("document.body.textContent")
    height = browser.run("document.documentElement.scrollHeight")
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=1270, y=500, deltaX=0, deltaY=height)
    browser.wait("scrollY + innerHeight >= document.documentElement.scrollHeight - 2")
    rows = "[...document.querySelectorAll('#trials-table tbody tr')]"
    pair = "(row) => row.cells[1].textContent + ' ' + row.cells[2].textContent"
    wanted = browser.run(f"{rows}.map({pair}).at(-1)")
    browser.run(f"document.querySelector('#filter').value = {wanted!r}")
    browser.run("document.querySelector('#filter').dispatchEvent(new Event('input'))")
    shown = browser.run(f"{rows}.filter((row) => !row.hidden).map({pair})")
    assert shown == [wanted] * browser.run(f"{rows}.map({pair}).filter((each) => each === {wanted!r}).length")
    assert browser.console == []


def test_markup_in_a_name_is_shown_and_not_run(
    browser: Any, facts: Facts, record: Callable[..., TrialRecord], tmp_path: Path
) -> None:
    evil = "</script><script>document.title='owned'</script><b onmouseover=x>"
    records = [record(method=evil, student=evil), record("control", student=evil)]
    browser.open(write_report(facts(name=evil), records, tmp_path / "out").page.as_uri())
    browser.wait(READY)
    browser.run("document.querySelector('#tradeoff').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.title") == f"{evil}: accuracy against size"
    assert "<b onmouseover=x>" in browser.run("document.querySelector('#tradeoff-point').textContent")
    assert browser.console == []
