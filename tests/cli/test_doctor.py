"""`doctor` prints one line per check, and its exit code tells whether a sweep can run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.doctor import Finding


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the checks find; a test may add to it."""
    found = [Finding("python", True, "3.11.2"), Finding("ray", True, "2.55", node="node-b")]
    monkeypatch.setattr("stillhouse.doctor.examine", lambda _home: list(found))
    return found


def test_good_findings_are_lines_with_ok(findings: list[Finding], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == ["ok   python: 3.11.2", "ok   node-b ray: 2.55"]


def test_one_bad_finding_is_exit_code_4(findings: list[Finding], tmp_path: Path) -> None:
    findings.append(Finding("home", False, "cannot write"))
    done = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path)])
    assert done.exit_code == 4
    assert done.stdout.splitlines()[-1] == "BAD  home: cannot write"


def test_the_document_has_every_finding(findings: list[Finding], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path), "--json"])
    assert json.loads(done.stdout)[0] == {"what": "python", "good": True, "fact": "3.11.2", "node": ""}
