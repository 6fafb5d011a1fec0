"""A sweep whose trials share a process: whatever happens to one of them, or to all, the students are those of trials apart."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from stillhouse.errors import Interrupted, SpecError
from stillhouse.spec.load import validate
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.cluster import cluster as cluster_module
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep
from stillhouse.workers import environment_of_workers

EPOCHS = 15
"""Long enough that a signal arrives in the middle of the trials."""
SPEC: dict[str, Any] = {
    "name": "packed",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 400, "limit_test": 100}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": 2},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"kd": {"temperature": {"uniform": [2.0, 6.0]}}, "unstable": {"scale": {"choice": [1.0, 1e38]}}},
    "search": {"trials_per_method": 2, "max_epochs": EPOCHS, "confirm_seeds": 0},
    "tracking": {"uri": "http://127.0.0.1:9"},
}
"""Five trials: one of the baseline, two that learn from the teacher, and two of which one diverges."""
WITHOUT_TEACHER: dict[str, Any] = {"teachers": {}, "methods": {"unstable": SPEC["methods"]["unstable"]}}
"""Three of them, which start sooner."""
UNSTABLE = '''
"""A method whose loss is not finite at a large scale."""

from dataclasses import dataclass
from typing import ClassVar

from stillhouse.distill.method import Card, Method, hyperparameter


@dataclass(frozen=True, kw_only=True)
class Unstable(Method):
    """Multiplies the supervised loss."""

    card: ClassVar[Card] = Card(title="Unstable", equations="none")
    scale: float = hyperparameter(1.0, above=0)

    def loss(self, step):
        return {name: term * self.scale * self.scale for name, term in super().loss(step).items()}
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        namespace="stillhouse",
        runtime_env={"env_vars": dict(environment_of_workers())},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all sweeps: they share the teacher and what it knows."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "own").mkdir()
    (folder / "own" / "unstable.py").write_text(UNSTABLE, encoding="utf-8")
    return folder / "home"


@dataclass
class Events(Progress):
    """Does `act` once, after an epoch of each of two trials."""

    act: Callable[[], None] = lambda: None
    epochs: dict[str, list[int]] = field(default_factory=dict)
    acted: bool = False

    def __post_init__(self) -> None:
        super().__init__("packed", quiet=True)

    def trial_epoch(self, key: str, epoch: int, value: float | None) -> None:
        super().trial_epoch(key, epoch, value)
        self.epochs.setdefault(key, []).append(epoch)
        if not self.acted and len(self.epochs) >= 2:
            self.acted = True
            self.act()


def sweep(home: Path, name: str, packed: int, events: Events | None = None, **changes: Any) -> Sweep:
    own = {
        "name": name,
        "trial_resources": {"packed": packed},
        "max_concurrent_trials": max(2, packed),
        "method_paths": [str(home.parent / "own")],
    }
    return Sweep(validate({**SPEC, **own, **changes}), home=home, progress=events or Events())


@pytest.fixture(scope="module")
def apart(cluster: None, home: Path) -> Results:
    """Each trial in a process of its own."""
    return sweep(home, "apart", 1).run()


def without_times(record: TrialRecord) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in record.curve]


class StopsOne:
    """Early stopping of the trial that reports first, after its third epoch."""

    def __init__(self) -> None:
        self.chosen: str | None = None

    def stops(self, key: str, epoch: int, score: float) -> bool:
        self.chosen = self.chosen or key
        return key == self.chosen and epoch == 3


@pytest.mark.ray
@pytest.mark.slow
def test_packed_trials_end_as_trials_apart_also_beside_one_that_diverges_and_one_that_is_stopped(
    apart: Results, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = StopsOne()
    monkeypatch.setattr(cluster_module, "make_stopping_rule", lambda _search: rule)
    results = sweep(home, "together", 3, search={**SPEC["search"], "scheduler": "median", "grace_epochs": 1}).run()
    expected = {record.trial.key: record for record in apart.records}
    found = {record.trial.key: record for record in results.records}
    assert found.keys() == expected.keys()
    assert len(found) == 5
    assert rule.chosen is not None
    stopped = found.pop(rule.chosen)
    assert (stopped.status, stopped.epochs_run) == ("stopped", 3)
    assert without_times(stopped) == without_times(expected[rule.chosen])[:3]
    for key, record in found.items():
        assert (record.status, record.weights_hash) == (expected[key].status, expected[key].weights_hash)
        assert without_times(record) == without_times(expected[key])
    (failed,) = results.failed
    assert failed.trial.hyperparameters == {"scale": 1e38}
    assert str(failed.reason).startswith("diverged in epoch 1")


@pytest.mark.ray
@pytest.mark.slow
def test_packed_trials_that_are_interrupted_and_whose_process_is_killed_then_end_as_trials_apart(
    apart: Results, home: Path
) -> None:
    first = Events(act=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        sweep(home, "interrupted", 3, first, **WITHOUT_TEACHER).run()
    trials = SweepHome(home, "interrupted").folder / "trials"
    stored = {path.parent.name for path in trials.glob("*/checkpoint")}
    assert stored
    assert stored <= first.epochs.keys()
    wait_until_gone()

    killed: list[int] = []

    def kill() -> None:
        killed.extend(packed_processes())
        for process in killed:
            os.kill(process, signal.SIGKILL)

    second = Events(act=kill)
    results = Sweep.named("interrupted", home=home, progress=second).run()
    assert all(second.epochs[key][0] > 1 for key in stored), "they do not begin again"
    assert len(killed) == 1
    expected = {record.trial.key: (record.status, record.weights_hash) for record in apart.records}
    found = {record.trial.key: (record.status, record.weights_hash) for record in results.records}
    assert found == {key: expected[key] for key in found}
    assert sorted(status for status, _ in found.values()) == ["failed", "finished", "finished"]


def packed_processes() -> list[int]:
    """The processes of packed workers below this one, by the titles that Ray gives them."""
    parents: dict[int, int] = {}
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            title = (folder / "cmdline").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
        if title.startswith("ray::PackedWorker"):
            found.append(int(folder.name))

    def is_below(process: int) -> bool:
        while process > 1:
            if process == os.getpid():
                return True
            process = parents.get(process, 0)
        return False

    return [process for process in found if is_below(process)]


def wait_until_gone() -> None:
    """Waits until the run has left no packed worker."""
    deadline = time.monotonic() + 60
    while packed_processes():
        assert time.monotonic() < deadline, "the interrupted run left a packed worker"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"trial_resources": {"packed": 4, "workers": 2, "cpu": 2}},
            "trial_resources.packed must be 1 where several workers train a student, got 4 with 2 workers",
        ),
        ({"trial_resources": {"packed": 4, "gpu": 2}}, "trial_resources.packed must be 1 with more than one GPU, got 4"),
        ({"trial_resources": {"packed": 4}, "training": {"compile": True}}, "training.compile must be false with"),
        (
            {"trial_resources": {"packed": 4}, "training": {"micro_batch": "auto"}},
            "training.micro_batch must be null",
        ),
        ({"trial_resources": {"packed": 0}}, "trial_resources.packed must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_one_sentence(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate({**SPEC, **sections})
    assert sentence in str(caught.value)
