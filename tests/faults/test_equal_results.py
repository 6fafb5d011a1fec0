"""Results that are equal on validation data: the simplest is chosen, the same one everywhere, and the page names the others.

The hash of a trial decided once: a tie of `scratch` and `attention_transfer` went to the latter.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from stillhouse import methods
from stillhouse.cli.output import answer_line
from stillhouse.cli.sweeps import _print_results
from stillhouse.data.datasets import load_dataset
from stillhouse.report import write_report
from stillhouse.spec.metric import ACCURACY
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.plan import Plan, make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.progress import Tally
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.results.trained_students import find_trial


def record(
    method: str, *, seed: int = 0, student: str = "lenet", parameters: int = 100, validation: float = 0.9, phase: str = "search"
) -> TrialRecord:
    """One whose key sorts the control last: `z` before the names that come first by key."""
    trial = Trial(
        key=f"{'z' if method == 'scratch' else 'a'}-{method}-{student}-{seed}-{phase}",
        phase="confirm" if phase == "confirm" else "search",
        student=StudentChoice(name=student, model=student),
        method=method,
        teacher=None if method == "scratch" else "big",
        seed=seed,
        epochs=1,
    )
    sizes = {"parameters": float(parameters), "size_bytes": 4.0 * parameters, "macs": 2.0 * parameters, "latency_ms": 0.5}
    metrics = {**sizes, "validation_accuracy": validation, "test_accuracy": validation}
    return TrialRecord(trial=trial, status="finished", metrics=metrics, weights="w", weights_hash="w")


@pytest.fixture
def results_of(tmp_path: Path) -> Callable[..., Results]:
    def make(*records: TrialRecord) -> Results:
        sweep_home = SweepHome(tmp_path, "ties")
        sweep_home.write_spec({"name": "ties"})
        objectives = {"validation_accuracy": "max", "parameters": "min"}
        facts = {"name": "ties", "spec": {}, "dataset": {"name": "digits"}, "baseline": "scratch", "planned": len(records)}
        sweep_home.write_facts(SweepFacts.model_validate({**facts, "objectives": objectives}))
        for each in records:
            sweep_home.ledger.write(each)
        return Results.read(tmp_path, "ties")

    return make


def chosen(results: Results, folder: Path) -> dict[str, str]:
    """What each part of the product names as the best student."""
    files = write_report(results.facts, results.records, folder)
    tally = Tally()
    for each in results.records:
        tally.add(each)
    return {
        "report": files.best[0]["trial"],
        "export": find_trial(results, "best").trial.key,
        "front": results.pareto()["trial"].iloc[0],
        "json": results.to_json()["pareto"][0]["trial"],
        "live": tally.best()[0]["trial"],
    }


def test_the_control_comes_before_a_method_that_is_as_good(results_of: Callable[..., Results], tmp_path: Path) -> None:
    control, method = record("scratch"), record("attention_transfer")
    results = results_of(method, control)
    assert set(chosen(results, tmp_path / "out").values()) == {control.trial.key}


def test_of_two_methods_that_are_as_good_the_smaller_student_comes_first(
    results_of: Callable[..., Results], tmp_path: Path
) -> None:
    large, small = record("kd", parameters=100), record("fitnets", student="mlp", parameters=99)
    results = results_of(large, small)
    assert set(chosen(results, tmp_path / "out").values()) == {small.trial.key}


def test_page_document_and_terminal_name_the_others(results_of: Callable[..., Results], tmp_path: Path) -> None:
    results = results_of(record("attention_transfer"), record("scratch"), record("kd", validation=0.8))
    files = write_report(results.facts, results.records, tmp_path / "out")
    assert "On validation data it ties with attention_transfer on lenet; of equal results the page takes the control" in (
        files.page.read_text(encoding="utf-8")
    )
    (answer,) = files.best
    assert answer["level_on_validation"] == ["a-attention_transfer-lenet-0-search"]
    assert "ties with 1 other on validation data" in answer_line(answer, ACCURACY)


def test_without_a_tie_none_is_named(results_of: Callable[..., Results], tmp_path: Path) -> None:
    results = results_of(record("attention_transfer", validation=0.95), record("scratch"))
    files = write_report(results.facts, results.records, tmp_path / "out")
    assert "it ties with" not in files.page.read_text(encoding="utf-8")
    assert files.best[0]["level_on_validation"] == []


def test_the_terminal_marks_the_students_that_the_page_has_on_its_front(
    results_of: Callable[..., Results], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The luckiest single trial is not on the front where fresh seeds show that its student is worse."""
    records = [
        record("kd", validation=0.99),
        *(record("kd", seed=seed, validation=0.80, phase="confirm") for seed in (1, 2)),
        *(record("scratch", seed=seed, validation=0.85, phase="confirm") for seed in (1, 2)),
    ]
    results = results_of(*records)
    _print_results(results)
    marked = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("pareto")}
    assert marked == {"z-scratch-lenet-1-confirm", "z-scratch-lenet-2-confirm"}
    (row,) = results.to_json()["pareto"]
    assert (row["trial"], row["seeds"], row["validation_accuracy"]) == ("z-scratch-lenet-1-confirm", 2, 0.85)
    page = write_report(results.facts, records, tmp_path / "out").page.read_text(encoding="utf-8")
    rows = [part.partition("</tr>")[0] for part in page.split('<tr class="on-front">')[1:]]
    assert {key for key in ("kd", "scratch") if any(f">{key}<" in row for row in rows)} == {"scratch"}
    assert len(rows) == 2


SPEC = {
    "name": "s",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}}},
    "students": [{"model": "mlp", "hidden": {"choice": [[8], [32]]}}],
    "methods": ["scratch", "kd"],
    "search": {"algorithm": "grid", "confirm_seeds": 1, "max_epochs": 1},
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(check(SPEC), load_dataset("digits", validation=80, options={"limit": 240}))


def ended(plan: Plan, values: Mapping[str, float]) -> list[TrialRecord]:
    """A record of each trial of the plan, larger students first."""
    records = []
    for trial in plan.trials:
        size = float(plan.size_of(trial).parameters)
        metrics = {"validation_accuracy": values[trial.method], "test_accuracy": 0.5, "parameters": size, "macs": size}
        records.append(TrialRecord(trial=trial, status="finished", metrics=metrics))
    return sorted(records, key=lambda each: -each.metrics["parameters"])


def test_the_confirm_phase_runs_the_smaller_of_equal_students(plan: Plan) -> None:
    confirmed = plan.trials_to_confirm(ended(plan, {"scratch": 0.5, "kd": 0.6}))
    assert {(trial.method, json.dumps(trial.student.options["hidden"])) for trial in confirmed} == {
        ("scratch", "[8]"),
        ("kd", "[8]"),
    }


def test_a_winner_that_was_confirmed_before_is_not_replaced_by_an_equal_one(plan: Plan) -> None:
    """A sweep that an earlier release began has confirmed the larger of two equal students: it keeps its trials."""
    records = ended(plan, {"scratch": 0.5, "kd": 0.6})
    large = next(each for each in records if each.trial.method == "kd")
    again = large.trial.model_copy(update={"phase": "confirm", "seed": 1, "key": "earlier"})
    records.append(TrialRecord(trial=again, status="finished", metrics=large.metrics))
    confirmed = [trial for trial in plan.trials_to_confirm(records) if trial.method == "kd"]
    assert [trial.student for trial in confirmed] == [large.trial.student]
    assert methods.baseline() == "scratch"
