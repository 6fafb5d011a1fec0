"""A sweep of generators through Ray: one teacher whose images every trial reads, critic, metric, page, export."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stillhouse.distill.evaluation import evaluate
from stillhouse.sweep.execution.stored_student import load_student
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.results.export import export_trial
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep
from stillhouse.teachers import judges
from stillhouse.teachers.library import TeacherLibrary

pytestmark = pytest.mark.ray

RECIPE = {"optimizer": "adam", "learning_rate": 0.0005, "adam_beta1": 0.5, "weight_decay": 0.0, "schedule": "constant"}
SPEC: dict[str, Any] = {
    "name": "generators",
    "task": "generation",
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 400}},
    "views": {"policy": [], "count": 2},
    "teachers": {"big": {"model": "dcgan", "width": 0.25, "train": {"epochs": 2, **RECIPE}}},
    "students": [{"model": "dcgan", "width": 0.125}],
    "methods": {"scratch": {}, "gan_compression": {"adversarial_weight": {"choice": [0.0, 0.03]}}},
    "search": {"algorithm": "grid", "max_epochs": 2, "confirm_seeds": 0},
    "training": RECIPE,
    "knowledge": {"way": "cached"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def results(home: Path) -> Results:
    return Sweep(check(SPEC), home=home).run()


def test_every_variant_finishes_and_the_teacher_runs_once_for_each_noise(results: Results) -> None:
    assert [record.reason for record in results.records if record.status != "finished"] == []
    variants = {(record.trial.method, record.trial.hyperparameters.get("adversarial_weight")) for record in results.records}
    assert variants == {("scratch", None), ("gan_compression", 0.0), ("gan_compression", 0.03)}
    (teacher,) = results.facts.teachers
    assert teacher.samples_filled == 2 * results.facts.dataset["train_samples"]
    assert teacher.way == "cached"


def test_only_variants_with_the_critics_loss_train_a_critic(results: Results) -> None:
    for record in results.records:
        needs = record.trial.hyperparameters.get("adversarial_weight", 1.0) > 0
        assert ("critic" in record.curve[-1]) == needs
        assert ("image" in record.curve[-1]) == (record.trial.method != "scratch")


def test_the_recorded_metric_is_that_of_the_stored_student_and_the_stored_judge(results: Results, home: Path) -> None:
    sweep = Sweep(check(SPEC), home=home)
    data = sweep.data()
    judges.prepare(data, TeacherLibrary(home / "teachers"))
    record = results.records[0]
    student = load_student(results.sweep_home, sweep.spec, record, data)
    assert evaluate(student, data, data.test, "cpu") == pytest.approx(record.metrics["test_fid"], rel=1e-5)


def test_the_page_shows_the_same_noise_through_teacher_and_student_with_words(results: Results) -> None:
    page = results.files.page.read_text()  # type: ignore[union-attr]
    assert page.count("data:image/png;base64,") >= 2
    assert 'alt="What the teacher makes of the inputs shown"' in page
    assert "The classifier FID compares features of a LeNet with" in page


def test_a_student_is_exported_and_its_script_makes_a_picture(results: Results, home: Path, tmp_path: Path) -> None:
    record = next(each for each in results.records if each.trial.method == "gan_compression")
    export_trial(home, "generators", record.trial.key, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "export.json").read_text())
    assert document["agreement"]["onnx"]["same_class"] == document["agreement"]["onnx"]["images"]
    assert "A generator of images with" in (tmp_path / "out" / "README.md").read_text()
    command = [sys.executable, str(tmp_path / "out" / "example.py"), "--onnx", str(tmp_path / "made.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made.png").is_file()


def test_a_finished_sweep_trains_nothing_again(results: Results, home: Path) -> None:
    again = Sweep(check(SPEC), home=home).run()
    assert again.reused == len(results.records) == 3
