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
    browser.open(capsys.readouterr().out.strip(), width=1700, height=1400)
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
