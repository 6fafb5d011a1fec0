"""The page as a real browser sees it: headless Chromium, where there is one."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.report.page import write_report
from stillhouse.spec.records import SweepFacts, TrialRecord

CHROMIUM = os.environ.get("STILLHOUSE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path, or its path in STILLHOUSE_CHROMIUM"),
]


def open_page(page: Path, profile: Path) -> tuple[str, str]:
    """The document after its scripts ran, and what the browser wrote to its console."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--window-size=1280,2000",
        "--virtual-time-budget=20000",
        "--dump-dom",
        page.as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout, "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)


def test_the_scatter_is_drawn_with_every_winner_and_the_console_stays_empty(
    facts: Callable[..., SweepFacts], sweep: Callable[..., list[TrialRecord]], tmp_path: Path
) -> None:
    files = write_report(facts(), sweep(trials_per_pair=1), tmp_path / "out")
    document, console = open_page(files.page, tmp_path / "profile")
    assert console == ""
    assert 'data-ready="yes"' in document
    scatter = document[document.index('id="tradeoff"') : document.index('id="gains"')]
    # Every pair with a finished trial has a winner with fresh seeds, so it has an error bar.
    pairs = {
        (record.trial.method, record.trial.student.name) for record in sweep(trials_per_pair=1) if record.status == "finished"
    }
    assert len(re.findall(r'class="yerror"', scatter)) == len(pairs)
    # The star of the teacher, and the rings of the front: at least its most accurate and its smallest student.
    assert len(re.findall(r'<path class="point', scatter)) >= len(pairs) + 1 + 2


def test_markup_in_a_name_is_shown_and_not_run(
    facts: Callable[..., SweepFacts], record: Callable[..., TrialRecord], tmp_path: Path
) -> None:
    evil = "</script><script>document.title='owned'</script><b onmouseover=x>"
    files = write_report(
        facts(name=evil), [record(method=evil, student=evil), record("control", student=evil)], tmp_path / "out"
    )
    document, console = open_page(files.page, tmp_path / "profile")
    assert console == ""
    assert 'data-ready="yes"' in document
    assert "<title>owned" not in document
