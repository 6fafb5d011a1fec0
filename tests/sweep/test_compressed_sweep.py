"""A sweep over routes, through Ray: derived, pruned and sparse students beside a plain one, with one teacher."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from stillhouse.distill.evaluation import evaluate
from stillhouse.sweep.execution.stored_student import load_student
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.results.export import export_trial
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep

pytestmark = pytest.mark.ray

SPEC: dict[str, Any] = {
    "name": "routes",
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 400}},
    "teachers": {"big": {"model": "resnet8", "train": {"epochs": 3}}},
    "students": [
        "lenet",
        {"name": "pruned", "from": "big", "compress": [{"prune": {"ratio": 0.5}}]},
        {"name": "sparse", "from": "big", "compress": [{"prune": {"ratio": 0.75, "pattern": "unstructured"}}]},
    ],
    "methods": {"scratch": {}, "attention_transfer": {}},
    "search": {"trials_per_method": 3, "max_epochs": 1},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def results(home: Path) -> Results:
    return Sweep(check(SPEC), home=home).run()


def test_every_student_is_trained_and_the_teacher_once(results: Results) -> None:
    assert [record.reason for record in results.records if record.status != "finished"] == []
    assert {record.trial.student.name for record in results.records} == {"lenet", "pruned", "sparse"}
    assert [teacher.name for teacher in results.facts.teachers] == ["big"]


def test_derived_students_record_the_network_that_they_began_with(results: Results) -> None:
    (teacher,) = results.facts.teachers
    for record in results.records:
        assert record.basis.source == (teacher.identity if record.trial.student.derived_from else "")


def test_sizes_are_the_planned_ones(results: Results, home: Path) -> None:
    sizes = {planned.student.variant: planned.size for planned in Sweep(check(SPEC), home=home).plan().students}
    for record in results.records:
        size = sizes[record.trial.student.variant]
        measured = [record.metrics[name] for name in ("parameters", "size_bytes", "macs")]
        assert measured == [size.parameters, size.size_bytes, size.macs]


def test_a_stored_student_is_loaded_with_what_was_judged(results: Results) -> None:
    sweep = Sweep(check(SPEC), home=results.home)
    data = sweep.data()
    for record in results.records:
        student = load_student(results.sweep_home, sweep.spec, record, data)
        assert evaluate(student, data, data.test, "cpu") == record.metrics["test_accuracy"]


def test_the_table_names_what_was_done(results: Results) -> None:
    assert results.files is not None
    rows = pd.read_parquet(results.files.table).to_dict("records")
    found = {(row["student"], row["compression"]) for row in rows if row["student"] != "lenet"}
    assert found == {("pruned", "prune(ratio=0.5)"), ("sparse", "prune(ratio=0.75, pattern=unstructured)")}
    assert all(pd.isna(row["compression"]) for row in rows if row["student"] == "lenet")
    assert {row["weight_bits"] for row in rows} == {32}
    assert all(row["nonzero_parameters"] < 0.3 * row["parameters"] for row in rows if row["student"] == "sparse")


def test_nothing_is_trained_again(results: Results) -> None:
    again = Sweep(check(SPEC), home=results.home).run()
    assert (again.reused, len(again.records)) == (6, 6)


def test_a_pruned_student_is_exported_as_a_plain_smaller_network(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    record = next(each for each in results.records if each.trial.student.name == "pruned")
    document = export_trial(results.home, "routes", record.trial.key, tmp_path / "student")
    assert document["compression"] == "prune(ratio=0.5)"
    card = (tmp_path / "student" / "README.md").read_text()
    assert "It began with the trained weights of teacher big." in card
    assert "What was done to the network before training, in order: `prune(ratio=0.5)`" in card
    program = torch.export.load(tmp_path / "student" / "student.pt2")
    assert sum(weight.numel() for weight in program.parameters()) == record.metrics["parameters"]
    assert json.loads((tmp_path / "student" / "export.json").read_text())["derived_from"] == "big"
