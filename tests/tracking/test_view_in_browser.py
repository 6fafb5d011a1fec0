"""The saved view as a browser draws it, on a real server."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking import sync, ui

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]

_CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium (apt-get install chromium)")
def test_the_view_opens_with_a_point_for_every_finished_trial_in_every_scatter(
    server: Any, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [make_record(number) for number in range(14)]  # more than the 10 that MLflow shows by itself
    records.append(make_record(14, status="failed", reason="x", metrics={}, curve=[]))
    sync(server.uri, tmp_path, "viewed", make_facts("viewed"), records, {})
    ui(server.uri, tmp_path, open_view="viewed")
    address = capsys.readouterr().out.strip()
    command = [str(_CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1700,1400"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", "--dump-dom", address]
    page = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    scatters = page.split("js-plotly-plot")[1:5]
    assert [scatter.count('<path class="point ') for scatter in scatters] == [14, 14, 14, 14]
