"""Data and weights at another path continue a sweep if their content is the same; otherwise the message says what differs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillhouse.data.evaluation_identity import evaluation_identity
from stillhouse.errors import SpecError, UsageError
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.facts import initial_facts
from stillhouse.sweep.moved_paths import moved_paths
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.results.trained_students import load_data, read_spec
from stillhouse.sweep.sweep import Sweep


def write_images(folder: Path, per_class: int = 12, classes: tuple[str, ...] = ("cat", "dog"), *, shift: int = 0) -> Path:
    """An image folder in which each class has a brightness."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for image in range(per_class):
            pixels = np.full((8, 8, 3), 20 * number + 5 * image + shift, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{image:02}.png")
    return folder


def spec(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "moved",
        "dataset": {"name": "image_folder", "root": str(root), "size": 8, "validation": 4, "options": {"test_share": 0.25}},
        "students": ["mlp"],
        "methods": {"scratch": {}},
        "search": {"trials_per_method": 1, "max_epochs": 1},
        **changes,
    }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a sweep of one trained trial. Later runs end where their trials would begin."""
    sweep = Sweep(check(spec(write_images(tmp_path / "images"))), home=tmp_path / "home")
    monkeypatch.setattr("stillhouse.sweep.run.run_sweep", lambda *_context, **_options: None)
    sweep.run()
    context = sweep._context()
    environment = TrialEnvironment(
        folder=str(sweep.sweep_home.folder),
        views=context.views,
        training=context.spec.training,
        evaluation=evaluation_identity(context.data),
    )
    record: TrialRecord = run_to_end(sweep.plan().trials[0], environment, context.data)
    assert record.status == "finished"
    sweep.sweep_home.write_facts(initial_facts(context, None, ""))
    return tmp_path / "home"


def test_the_same_files_elsewhere_continue_the_sweep(home: Path, tmp_path: Path) -> None:
    there = shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    with pytest.raises(SpecError, match="must be a folder that exists"):
        Sweep.named("moved", home=home).run()
    Sweep(check(spec(Path(there))), home=home).run()
    assert Sweep.named("moved", home=home).spec.dataset.root == str(tmp_path / "elsewhere")


def test_resume_and_export_accept_the_new_root(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    results = Results.read(home, "moved")
    moved = read_spec(results.sweep_home, ["dataset.root=elsewhere"])
    assert load_data(results, moved).fingerprint == results.facts.dataset["fingerprint"]
    assert results.sweep_home.read_spec_dict()["dataset"]["root"] == str(tmp_path / "images"), "an export stores no path"
    sweep = Sweep.named("moved", home=home, overrides=["dataset.root=elsewhere"])
    sweep.run()
    standing = sweep.standing()
    assert standing is not None
    assert [each.status for _trial, each in standing.trials.values()] == ["finished"]
    assert Sweep.named("moved", home=home).spec.dataset.root == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("images", "difference"),
    [
        ({"per_class": 16}, "train samples 14 before, 20 now"),
        ({"classes": ("cat", "bird")}, "without class dog, with the new class bird"),
        ({"shift": 1}, "the content of training or validation samples"),
    ],
    ids=["more", "another class", "other pixels"],
)
def test_other_files_are_refused_with_what_differs(home: Path, tmp_path: Path, images: Any, difference: str) -> None:
    other = write_images(tmp_path / "other", **images)
    before = sorted(path for path in home.rglob("*") if "data" not in path.parts)
    results = Results.read(home, "moved")
    for action in (
        Sweep.named("moved", home=home, overrides=[f"dataset.root={other}"]).run,
        Sweep.named("moved", home=home, overrides=[f"dataset.root={other}"]).verify,
        lambda: load_data(results, read_spec(results.sweep_home, [f"dataset.root={other}"])),
    ):
        with pytest.raises(UsageError) as raised:
            action()
        assert f"what differs: {difference}" in str(raised.value)
        assert "--set dataset.root=DIR" in str(raised.value)
    assert sorted(path for path in home.rglob("*") if "data" not in path.parts) == before
    assert Sweep.named("moved", home=home).spec.dataset.root == str(tmp_path / "images")


def test_other_keys_of_a_kept_sweep_are_still_refused(home: Path) -> None:
    with pytest.raises(UsageError, match=r"search\.max_epochs changed"):
        Sweep.named("moved", home=home, overrides=["search.max_epochs=2"]).run()


def test_only_paths_of_data_and_weights_count_as_moved() -> None:
    old = {"dataset": {"root": "a", "size": 8}, "teachers": {"big": {"weights": "b"}}, "students": [{"weights": "c"}]}
    new = {"dataset": {"root": "x", "size": 9}, "teachers": {"big": {"weights": "y"}}, "students": [{"weights": "z"}]}
    assert moved_paths(old, new) == {"dataset.root", "teachers.big.weights", "students[0].weights"}
    assert moved_paths(None, new) == frozenset()


def test_other_weights_under_a_new_path_are_refused(home: Path, tmp_path: Path) -> None:
    """The trial of the home has no teacher, so it is given one under whose weights it would have another key."""
    for name in ("first", "second"):
        save_weights(build_model("lenet", num_classes=2, input_shape=(3, 8, 8)), tmp_path / f"{name}.safetensors", {})
    shutil.copy(tmp_path / "first.safetensors", tmp_path / "copy.safetensors")

    def sweep(weights: str) -> Sweep:
        teachers = {"big": {"model": "lenet", "weights": str(tmp_path / weights)}}
        return Sweep(check(spec(tmp_path / "images", name="taught", teachers=teachers, methods={"kd": {}})), home=home)

    first = sweep("first.safetensors")
    first.run()
    taught = next(trial for trial in first.plan().trials if trial.method == "kd")
    first.sweep_home.ledger.write(TrialRecord(trial=taught, status="failed", reason="a record of it is enough"))
    sweep("copy.safetensors").run()
    with pytest.raises(UsageError, match=r"other content than teachers\.big\.weights has now: 1 of its trials"):
        sweep("second.safetensors").run()
