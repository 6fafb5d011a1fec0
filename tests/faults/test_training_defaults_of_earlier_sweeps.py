"""A changed training default reaches new sweeps alone: sweeps of the first release keep their recipe and their trial keys.

`spec_of_the_first_release.json` is the `spec.json` that version 0.1.0, commit b8eeec3, stored for `YAML`; the keys are those of
its plan, and of its plan with three trials of each method.
"""

import json
from pathlib import Path

import pytest

from stillhouse.spec.load import spec_to_dict, validate_stored
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.sweep import Sweep

STORED = json.loads(Path(__file__).parents[1].joinpath("sweep", "spec_of_the_first_release.json").read_text())
FIRST_KEYS = ["1cd67d27ae13aa2c", "73c42a697db26dee", "1bf211f18e3227cd"]
EXTENDED_KEYS = [*FIRST_KEYS, "f068b8068a62d8e7"]
YAML = """
name: old
dataset: {name: digits, validation: 100, options: {limit: 300, limit_test: 100}}
views: {policy: [crop], count: 2}
teachers: {big: {model: resnet8, train: {epochs: 2}}}
students: [lenet]
methods: {scratch: {}, kd: {}}
search: {trials_per_method: 2, max_epochs: 2}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture
def old_home(tmp_path: Path, file: Path) -> Path:
    """A home in which the first release began the sweep and finished its first trial."""
    home = tmp_path / "home"
    sweep_home = SweepHome(home, "old")
    sweep_home.folder.mkdir(parents=True)
    (sweep_home.folder / "spec.json").write_text(json.dumps(STORED))
    first = Sweep.named("old", home=home).plan().trials[0]
    sweep_home.ledger.write(TrialRecord(trial=first, status="finished", metrics={"validation_accuracy": 0.5}))
    return home


def keys(sweep: Sweep) -> list[str]:
    return [trial.key for trial in sweep.plan().trials]


def store_spec(sweep: Sweep) -> None:
    """As the first run of a sweep does."""
    sweep.sweep_home.folder.mkdir(parents=True, exist_ok=True)
    sweep.sweep_home.write_spec(
        spec_to_dict(sweep.spec, secrets=True), complete=lambda stored: spec_to_dict(validate_stored(stored), secrets=True)
    )


def test_a_sweep_of_the_first_release_is_resumed_and_extended_with_its_keys(old_home: Path) -> None:
    assert keys(Sweep.named("old", home=old_home)) == FIRST_KEYS
    assert keys(Sweep.extended("old", 3, home=old_home)) == EXTENDED_KEYS


def test_its_yaml_file_continues_it_with_its_keys(old_home: Path, file: Path) -> None:
    sweep = Sweep.from_yaml(file, home=old_home)
    assert keys(sweep) == FIRST_KEYS
    store_spec(sweep)  # refuses a spec with changed keys


def test_a_fork_of_it_takes_over_its_trials(old_home: Path, file: Path) -> None:
    fork = Sweep.forked(Sweep.from_yaml(file).spec, "fork", home=old_home)
    assert keys(fork) == FIRST_KEYS
    store_spec(fork)
    assert keys(Sweep.named("fork", home=old_home)) == FIRST_KEYS
    assert keys(Sweep.extended("fork", 3, home=old_home)) == EXTENDED_KEYS


def test_a_new_sweep_of_the_same_file_has_other_keys_which_it_keeps(tmp_path: Path, file: Path) -> None:
    new = Sweep.from_yaml(file, home=tmp_path / "new")
    assert new.spec.training.gradient_clip == 5.0
    made = keys(new)
    assert not {*made} & {*EXTENDED_KEYS}
    store_spec(new)
    assert keys(Sweep.named("old", home=tmp_path / "new")) == made
    assert keys(Sweep.from_yaml(file, home=tmp_path / "new")) == made
    assert keys(Sweep.extended("old", 3, home=tmp_path / "new"))[: len(made)] == made
    assert keys(Sweep.forked(Sweep.from_yaml(file).spec, "fork", home=tmp_path / "new")) == made


def test_a_file_that_names_the_first_recipe_begins_a_sweep_with_the_first_releases_keys(tmp_path: Path, file: Path) -> None:
    file.write_text(YAML + "recipe: 1\n")
    assert keys(Sweep.from_yaml(file, home=tmp_path / "new")) == FIRST_KEYS


def test_teachers_that_the_platform_trains_follow_the_recipe_too(old_home: Path, file: Path) -> None:
    assert Sweep.from_yaml(file, home=old_home).spec.teachers["big"].train.gradient_clip is None
    assert Sweep.from_yaml(file).spec.teachers["big"].train.gradient_clip == 5.0
