"""Where a result came from: code and machine."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import stillhouse
from stillhouse.provenance import code_facts, environment_facts
from stillhouse.workers import COMMIT_VARIABLE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """The facts of the code are remembered for a process's life."""
    code_facts.cache_clear()
    yield
    code_facts.cache_clear()


def test_a_checkout_reports_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("these files are no checkout")
    monkeypatch.setenv(COMMIT_VARIABLE, "of the driver")
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    facts = code_facts()
    assert (facts["version"], facts["commit"]) == (stillhouse.__version__, head.stdout.strip())
    assert facts["package_path"] == str(ROOT / "platform" / "stillhouse")


def test_a_copy_without_git_reports_the_drivers_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stillhouse, "__file__", str(tmp_path / "platform" / "stillhouse" / "__init__.py"))
    monkeypatch.setenv(COMMIT_VARIABLE, "c0ffee")
    assert code_facts()["commit"] == "c0ffee"


def test_an_installed_package_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stillhouse, "__file__", str(tmp_path / "site-packages" / "stillhouse" / "__init__.py"))
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    assert code_facts()["commit"] is None


def test_the_environment_has_versions_and_hardware() -> None:
    facts = environment_facts()
    assert {"stillhouse", "python", "torch", "ray", "mlflow", "system", "processor", "cores", "gpu"} <= facts.keys()
    assert isinstance(facts["cores"], int)
