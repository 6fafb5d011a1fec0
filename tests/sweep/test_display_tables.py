"""In Python and notebooks, a sweep and its results are shown as tables, progress is shown, and paths may be text."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import stillhouse
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.progress import Progress, in_notebook
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep

SPEC: dict[str, Any] = {
    "name": "tables",
    "dataset": {"name": "digits"},
    "teachers": {"big": {"model": "resnet8"}},
    "students": ["mlp", "lenet"],
    "methods": {"kd": {}},
}
FACTS = SweepFacts(
    name="tables", spec={}, dataset={"name": "digits"}, baseline="scratch", planned=2, objectives={"parameters": "min"}
)


def finished(make_record: Callable[..., TrialRecord], key: str, value: float) -> TrialRecord:
    metrics = {
        "validation_accuracy": value,
        "test_accuracy": value,
        "parameters": 1000.0 * value,
        "size_bytes": 4.0,
        "macs": 2.0,
    }
    return make_record(key, (value,), metrics=metrics, trial={"hyperparameters": {"weight": value}})


@pytest.fixture
def stored(tmp_path: Path, make_record: Callable[..., TrialRecord]) -> Path:
    """A home with a sweep of one finished and one failed trial."""
    sweep_home = SweepHome(tmp_path, "tables")
    with sweep_home.locked():
        sweep_home.write_spec(spec_to_dict(validate(SPEC)))
    sweep_home.write_facts(FACTS)
    sweep_home.ledger.write(finished(make_record, "a", 0.5))
    sweep_home.ledger.write(make_record("b", (), status="failed", reason="diverged"))
    return tmp_path


def test_a_sweep_is_shown_before_and_after_its_run(tmp_path: Path, stored: Path) -> None:
    before = repr(Sweep(validate(SPEC), home=tmp_path / "elsewhere")).splitlines()
    assert [line.split()[0] for line in before] == ["sweep", "home", "data", "teachers", "students", "methods", "state"]
    assert before[-1].split(maxsplit=1)[1] == "not started"
    assert before[4].split(maxsplit=1)[1] == "mlp, lenet"
    after = repr(Sweep(validate(SPEC), home=stored)).splitlines()
    assert after[-1].split(maxsplit=1)[1] == "finished, 2 of 2 trials done, 1 failed"


def test_a_notebook_shows_a_sweep_as_a_table_with_its_text_escaped(tmp_path: Path) -> None:
    sweep = Sweep(validate({**SPEC, "dataset": {"name": "digits", "root": "/data/<mine>"}}), home=str(tmp_path))
    shown = sweep._repr_html_()
    assert shown.count("<tr>") == 7
    assert "/data/&lt;mine&gt;" in shown
    assert "<mine>" not in shown


@pytest.mark.parametrize("home", [str, Path])
def test_results_are_shown_with_the_metrics_own_names(stored: Path, home: Callable[[Path], Any]) -> None:
    results = Results.read(home(stored), "tables")
    first, heading, row = repr(results).splitlines()
    assert first == "results of sweep 'tables', 2 trials: 1 finished, 1 failed; students on the Pareto front:"
    assert heading.split() == ["trial", "method", "student", "seeds", "parameters", "validation_accuracy", "test_accuracy"]
    assert row.split()[0] == "a"
    assert results.metric.column("test") == "test_accuracy"
    assert "<th>test_accuracy</th>" in results._repr_html_()


def test_results_without_a_finished_trial_are_one_line(tmp_path: Path) -> None:
    results = Results(facts=FACTS, records=[], sweep_home=SweepHome(tmp_path, "tables"), planned=0)
    assert repr(results).startswith("results of sweep 'tables', 0 trials")
    assert "\n" not in repr(results)
    assert "<table" not in results._repr_html_()


def test_progress_is_quiet_in_a_script_and_shown_where_the_user_wants_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not in_notebook()
    for progress, lines in ((None, 0), (False, 0), (True, 1)):
        Sweep(validate(SPEC), home=tmp_path, progress=progress)._progress.note("something happened")
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_notebook_has_one_line_per_event_without_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_jupyter=True, width=100)
    lines: list[str] = []
    monkeypatch.setattr(console, "print", lambda text, **_: lines.append(str(text)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with Progress("s", console=console) as progress:
        progress.note("measuring")
    assert [line.split(" ", 1)[1] for line in lines] == ["measuring"]


def test_an_entered_progress_may_be_entered_again() -> None:
    progress = Progress("s", console=Console(file=io.StringIO(), force_terminal=True))
    with progress:
        live = progress._live
        with progress:
            assert progress._live is live is not None
        assert progress._live is live
    assert progress._live is None


def test_the_package_lists_its_public_names() -> None:
    assert {"Sweep", "Results", "__version__"} <= set(dir(stillhouse))
    assert all(getattr(stillhouse, name) is not None for name in stillhouse.__all__)
