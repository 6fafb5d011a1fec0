"""Trials on nodes that cannot access the home, without Ray: the same bits, and all durable files are in the home."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.home_access import home_address
from stillhouse.home_access import node_home as homes
from stillhouse.home_access.home_address import HomeAddress, shared_home
from stillhouse.home_access.keeper import Keeper
from stillhouse.home_access.node_home import node_home
from stillhouse.knowledge import logits
from stillhouse.knowledge.fill_log import count_fills
from stillhouse.models.weights import load_weights, weights_hash
from stillhouse.spec.records import Trial
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.students import build_student
from stillhouse.sweep.execution.trial_environment import TeacherScore, TrialEnvironment
from stillhouse.sweep.execution.trial_records import existing_record
from stillhouse.sweep.execution.trial_runner import TrialRunner, run_to_end
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.ticket import TeacherTicket

MakeTrial = Callable[..., Trial]
VIEWS, TRAIN = 2, 160


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", options={"limit": TRAIN + 40}, validation=40)


@pytest.fixture
def home(tmp_path: Path) -> HomeAddress:
    (tmp_path / "home").mkdir()
    return shared_home(tmp_path / "home")


@pytest.fixture
def go_to_node(tmp_path: Path, home: HomeAddress, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes this process one of a node that does not see the home; a link leads to a keeper in this process."""
    keeper = Keeper(home.path)

    class Link:
        def caller(self) -> str:
            return "me"

        def call(self, method: str, *arguments: Any) -> Any:
            return getattr(keeper, method)(*arguments)

    def go(node: str) -> None:
        monkeypatch.setenv(home_address.SCRATCH_VARIABLE, str(tmp_path / node))
        node_home.cache_clear()

    monkeypatch.setenv(home_address.COMMON_VARIABLE, "0")
    monkeypatch.setattr(homes, "KeeperLink", lambda _name: Link())
    # The teacher fills on its own in these tests.
    monkeypatch.setattr(ActorLink, "broadcast", lambda *_arguments: None)
    yield go
    node_home.cache_clear()


def teach(home: HomeAddress, data: ImageData, views: Views) -> TeacherTicket:
    """A teacher that is trained, and fills all views, wherever this process is."""
    here = node_home(home)
    definition = TeacherDefinition(name="big", model="lenet", epochs=2, num_classes=10, input_shape=(1, 8, 8))
    teacher = TeacherLibrary(here.folder / "teachers", here).obtain(definition, data, views)
    here.store.root.mkdir(parents=True, exist_ok=True)
    service = TeacherService(teacher, data, views, here.store, note_fill=here.note_fill)
    for view in range(VIEWS):
        service.fill(view, [logits()])
    return TeacherTicket(
        definition=definition,
        weights_path=str(here.there(teacher.path)),
        weights_hash=teacher.weights_hash,
        base=service.base,
        actor="never-there",
        modes={logits().id: "cached"},
        home=home,
    )


def test_a_trial_moves_between_nodes_without_the_home_and_ends_with_the_same_bits(
    make_trial: MakeTrial, digits: ImageData, home: HomeAddress, tmp_path: Path, go_to_node: Callable[[str], None]
) -> None:
    views = Views(("crop",), VIEWS, digits.input_shape, len(digits.train))
    trial = make_trial(method="kd", teacher="big", hyperparameters={"temperature": 4.0})
    go_to_node("teachers-node")
    ticket = teach(home, digits, views)
    sweep_home = SweepHome(Path(home.path), "apart")
    environment = TrialEnvironment(
        folder=str(sweep_home.folder),
        views=views,
        training=Training(batch_size=40),
        tickets={"big": ticket},
        teachers={"big": TeacherScore(parameters=1000, test_value=0.9)},
        checkpoint_interval_s=0.0,
        home=home,
    )
    assert count_fills(Path(home.path) / "knowledge", ticket.weights_hash)["samples"] == VIEWS * TRAIN

    go_to_node("first")
    TrialRunner(trial, environment, digits).run_epoch()
    assert (sweep_home.folder / "trials" / trial.key / "checkpoint").is_file()
    assert existing_record(trial, environment) is None

    go_to_node("second")
    runner = TrialRunner(trial, environment, digits)
    assert len(runner.curve) == 1, "it goes on at the checkpoint of the other node"
    while not runner.finished:
        runner.run_epoch()
    record = runner.finish()

    assert sweep_home.read_records() == [record]
    assert not (sweep_home.folder / "trials" / trial.key).exists()
    student = build_student(trial.student, digits)
    load_weights(student, sweep_home.folder / str(record.weights))
    assert weights_hash(student) == record.weights_hash
    go_to_node("third")
    assert existing_record(trial, environment) == record, "a process that gets the trial again finds it it is done"

    # The same trial where the home is a folder: no node, no keeper.
    common = HomeAddress(path=home.path)
    undisturbed = run_to_end(
        trial,
        replace(environment, folder=str(tmp_path / "alone"), home=None, tickets={"big": replace(ticket, home=common)}),
        digits,
    )
    assert undisturbed.weights_hash == record.weights_hash
    assert count_fills(Path(home.path) / "knowledge", ticket.weights_hash)["samples"] == VIEWS * TRAIN
