"""The saved view as a browser draws it, on a real server, and the way from the report to a run. Screenshots: `.artifacts/`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.report import write_report
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking import sync, ui

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]
PLOTS = "[...document.querySelectorAll('.js-plotly-plot')]"
# What mlflow 3.17's own pages write: it asks who is logged in where there are no logins, and its table warns of old names.
_OF_MLFLOW = ("/mlflow/users/current", "AG Grid")
AXES = "[...document.querySelectorAll('.parcoords .axis-title, .parcoords .label, .parcoords text')].map((e) => e.textContent)"
COUNTS = f"{PLOTS}.slice(0, 4).map((plot) => plot.querySelectorAll('path.point').length)"


def test_the_view_opens_with_a_point_for_every_finished_trial_in_every_scatter(
    server: Any,
    browser: Any,
    tmp_path: Path,
    make_record: RecordMaker,
    make_facts: FactsMaker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [
        make_record(
            number,
            metrics={
                "test_accuracy": 0.7 + number / 100,
                "parameters": 1000 * 2**number,
                "size_bytes": 4000 * 2**number,
                "macs": 900 * 3**number,
                "latency_ms": 0.1 + number / 9,
                "validation_accuracy": 0.7,
            },
        )
        for number in range(14)  # more than the 10 that MLflow shows by itself
    ]
    records.append(make_record(14, status="failed", reason="x", metrics={}, curve=[]))
    sync(server.uri, tmp_path, "viewed", make_facts("viewed"), records, {})
    ui(server.uri, tmp_path, open_view="viewed")
    # High enough for all charts: MLflow draws those that can be seen.
    browser.open(capsys.readouterr().out.strip(), width=1700, height=2500)
    browser.wait(f"{PLOTS}.length >= 4 && JSON.stringify({COUNTS}) === '[14,14,14,14]'", timeout_s=120)
    # The fifth chart is drawn in WebGL; its axes are in the page.
    browser.wait(f"{AXES}.includes('method') && {AXES}.includes('student') && {AXES}.includes('parameters')")
    time.sleep(1)
    browser.screenshot("mlflow-view")
    assert [line for line in browser.console if not any(known in line for known in _OF_MLFLOW)] == []


def test_a_point_of_the_report_leads_to_its_run(
    server: Any, browser: Any, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker
) -> None:
    records = [make_record(number) for number in range(3)]
    done = sync(server.uri, tmp_path, "linked", make_facts("linked"), records, {})
    files = write_report(make_facts("linked"), records, tmp_path / "out", (), done.addresses)
    browser.open(files.page.as_uri())
    browser.wait("document.documentElement?.dataset.ready === 'yes'")
    key = records[1].trial.key
    links = "[...document.querySelectorAll('#trials-table a')]"
    address = browser.run(f"{links}.find((link) => link.textContent === '{key}').href")
    assert address == done.addresses[key]
    browser.open(address, width=1500, height=1100)
    browser.wait(f"document.body?.innerText.includes('kd small seed 1 {key[:8]}')", timeout_s=120)
    browser.wait("document.body.innerText.includes('test_accuracy')", timeout_s=60)
    browser.screenshot("mlflow-run")
    assert [line for line in browser.console if not any(known in line for known in _OF_MLFLOW)] == []


TOOLBARS = f"{PLOTS}.slice(0, 2).map((plot) => plot.querySelector('.modebar').getBoundingClientRect().toJSON())"
HIGHEST = (
    f"{PLOTS}.slice(0, 2).map((plot) => [...plot.querySelectorAll('path.point')].map((e) => e.getBoundingClientRect().toJSON())"
    ".reduce((one, other) => (one.top < other.top ? one : other)))"
)


def test_the_toolbar_hides_no_best_point_in_a_small_window_beside_the_assistant(
    server: Any,
    browser: Any,
    tmp_path: Path,
    make_record: RecordMaker,
    make_facts: FactsMaker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ("parameters", "size_bytes", "macs", "latency_ms")
    records = [
        make_record(number, metrics={"test_accuracy": 0.7 + number / 100, **dict.fromkeys(sizes, 10.0 * 2**number)})
        for number in range(8)
    ]
    sync(server.uri, tmp_path, "small", make_facts("small"), records, {})
    ui(server.uri, tmp_path, open_view="small")
    browser.open(capsys.readouterr().out.strip(), width=1280, height=900)
    # The first two charts; the others are below the window, where nothing is drawn.
    browser.wait(f"{PLOTS}.length >= 2 && JSON.stringify({COUNTS}).startsWith('[8,8')", timeout_s=120)
    # MLflow opens the pane on a first visit, which makes the charts narrower.
    browser.wait("document.body.innerText.includes('MLflow Assistant')")
    time.sleep(2)
    browser.screenshot("mlflow-view-small")
    for bar, point in zip(browser.run(TOOLBARS), browser.run(HIGHEST), strict=True):
        assert bar["height"] > 0
        assert point["top"] >= bar["bottom"] or point["right"] <= bar["left"]


def test_the_page_of_a_sweep_leads_to_its_trials_and_that_of_a_trial_describes_it(
    server: Any, browser: Any, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker
) -> None:
    samples = [{"time_ms": 1.7e12 + 1e4 * number, "process_cpu_percentage": 90.0 + number} for number in range(3)]
    records = [make_record(number, system=samples) for number in range(3)]
    done = sync(server.uri, tmp_path, "described", make_facts("described"), records, {})
    browser.open(done.addresses[""], width=1500, height=1100)
    link = "[...document.querySelectorAll('a')].find((a) => a.textContent.startsWith('All trials of this sweep'))"
    browser.wait(link, timeout_s=120)
    browser.screenshot("mlflow-sweep-run")
    # It may open in a new tab, so its address is followed.
    browser.open(browser.run(f"{link}.href"), width=1500, height=1100)
    browser.wait(f"{PLOTS}.length >= 1 && JSON.stringify({COUNTS}).startsWith('[3')", timeout_s=120)
    browser.open(done.addresses[records[0].trial.key], width=1500, height=1100)
    browser.wait("document.body?.innerText.includes('trained with kd by big on digits')", timeout_s=120)
    browser.run(
        "[...document.querySelectorAll('a, [role=tab]')].find((e) => e.textContent.trim() === 'System metrics').click()"
    )
    browser.wait("document.body.innerText.includes('process_cpu_percentage')", timeout_s=60)
    browser.screenshot("mlflow-trial-run")
