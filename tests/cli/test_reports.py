"""`stillhouse report`, and what it reports of bad input, on made-up ledgers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome

Run = Callable[..., tuple[int, str, str]]


def made_record(number: int = 0, *, accuracy: float = 0.9, status: str = "finished", method: str = "kd") -> TrialRecord:
    results = {"validation_accuracy": accuracy, "test_accuracy": accuracy} if status == "finished" else {}
    return TrialRecord.model_validate(
        {
            "trial": Trial(
                key=f"{number:016x}", student=StudentChoice(name="mlp", model="mlp"), method=method, seed=number, epochs=2
            ),
            "status": status,
            "reason": None if status == "finished" else "loss is NaN at epoch 1",
            "metrics": {"parameters": 1000.0, "size_bytes": 4000.0, "macs": 1000.0, "latency_ms": 0.1, **results},
        }
    )


def keep(home: Path, name: str, records: list[TrialRecord], spec: dict[str, Any] | None = None) -> SweepHome:
    sweep_home = SweepHome(home, name)
    sweep_home.folder.mkdir(parents=True)
    sweep_home.write_spec({"name": name})
    dataset = {"name": "digits", "fingerprint": "f"}
    sweep_home.write_facts(SweepFacts(name=name, spec=spec or {}, dataset=dataset, baseline="scratch", planned=len(records)))
    for record in records:
        sweep_home.ledger.write(record)
    return sweep_home


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["report", *arguments, "--home", str(tmp_path)])
        return result.exit_code, result.stdout, result.stderr

    return command


def test_an_unknown_sweep_is_wrong_usage_with_a_suggestion(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, "tiny", [made_record()])
    code, _, complaint = run("tinny")
    assert code == 2
    assert "no sweep 'tinny'" in complaint
    assert "tiny" in complaint.split("did you mean")[1]


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([], "No trial has ended yet"),
        ([made_record()], "one seed, so no interval"),
        ([made_record(number, status="failed") for number in range(3)], "All 3 trials failed"),
        ([made_record(number) for number in range(3)], "no student finished both with scratch and with another method"),
        ([made_record(method="kd"), made_record(1, method="scratch")], "it ran with one seed, so it cannot be compared"),
        ([made_record(0), made_record(1, status="failed")], "loss is NaN at epoch 1"),
    ],
)
def test_a_poor_ledger_is_a_page_that_names_what_is_missing(
    run: Run, tmp_path: Path, records: list[TrialRecord], sentence: str
) -> None:
    keep(tmp_path, "tiny", records)
    code, out, _ = run("tiny", "--out", str(tmp_path / "out"), "--json")
    assert code == 0
    assert set(json.loads(out)) == {"page", "table", "figure", "best"}
    assert sentence in (tmp_path / "out" / "report.html").read_text()


def test_a_damaged_record_is_left_out_and_the_rest_reported(run: Run, tmp_path: Path) -> None:
    sweep_home = keep(tmp_path, "tiny", [made_record(0), made_record(1)])
    next(sweep_home.ledger.folder.glob("*1.record")).write_bytes(b"half")
    assert run("tiny", "--out", str(tmp_path / "out"))[0] == 0
    assert len((tmp_path / "out" / "tradeoff.csv").read_text().splitlines()) == 2


def test_a_sweep_that_never_got_far_enough_names_the_command_that_goes_on(run: Run, tmp_path: Path) -> None:
    (keep(tmp_path, "tiny", []).folder / "facts").unlink()
    code, _, complaint = run("tiny")
    assert code == 2
    assert "stillhouse resume tiny" in complaint


def test_the_budgets_of_the_command_line_are_answered_in_order(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, "tiny", [made_record()], {"report": {"budgets": ["parameters=5"]}})
    code, out, _ = run("tiny", "--budget", "parameters=1k", "--budget", "macs=10", "--json")
    best = json.loads(out)["best"]
    assert code == 0
    assert [each["budget"] for each in best] == [{"parameters": 1000.0}, {"macs": 10.0}]
    assert [each["trial"] for each in best] == ["0" * 16, None]


def test_without_budgets_on_the_command_line_those_of_the_spec_are_answered(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, "tiny", [made_record()], {"report": {"budgets": ["parameters=5"]}})
    code, out, _ = run("tiny")
    assert code == 0
    assert "parameters <= 5: no finished student fits" in out


@pytest.mark.parametrize("budget", ["parameters", "weight=3", "parameters=-1"])
def test_a_budget_that_makes_no_sense_is_wrong_usage(run: Run, tmp_path: Path, budget: str) -> None:
    keep(tmp_path, "tiny", [made_record()])
    code, _, complaint = run("tiny", "--budget", budget)
    assert code == 2
    assert complaint.startswith("error: budget")


def test_several_sweeps_need_a_folder_of_their_own(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        keep(tmp_path, name, [made_record(accuracy=0.5 if name == "a" else 0.6, number=ord(name))])
    code, _, complaint = run("a", "b")
    assert code == 2
    assert "--out DIR" in complaint
    code, out, _ = run("a", "b", "--out", str(tmp_path / "both"), "--json")
    assert code == 0
    assert json.loads(out)["best"][0]["sweep"] == "b"


def test_a_folder_that_cannot_be_written_is_one_sentence(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, "tiny", [made_record()])
    (tmp_path / "file").write_text("")
    code, _, complaint = run("tiny", "--out", str(tmp_path / "file" / "below"))
    assert code == 4
    assert "choose another folder with --out" in complaint


def test_rows_link_to_the_runs_that_tracking_noted(run: Run, tmp_path: Path) -> None:
    sweep_home = keep(tmp_path, "tiny", [made_record()])
    address = "http://127.0.0.1:5000/#/experiments/1/runs/abc"
    sweep_home.write_addresses({"0" * 16: address})
    run("tiny")
    page = (sweep_home.report / "report.html").read_text()
    assert f'href="{address}"' in page
    assert "stillhouse ui tiny" in page
