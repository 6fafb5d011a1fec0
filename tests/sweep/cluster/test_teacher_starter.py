"""Starting the teachers' actors: deaths while they prepare, and actors that are about to end. Ray itself is replaced."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.leases import LeaseHolder
from stillhouse.spec.load import validate
from stillhouse.sweep.cluster import teacher_starter
from stillhouse.sweep.cluster.teacher_starter import TeacherStarter
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.shutdown import ShutdownRequest

# A teacher that dies while it is made ready

GONE = ActorUnavailableError("the actor is restarting", None)
STATES: dict[str, dict[str, Any]] = {
    "dies": {"process_id": 1, "prepare": GONE},
    "restarts": {"process_id": GONE, "prepare": GONE},
    "ready": {"process_id": 2, "prepare": {"device": "cpu"}, "status": "ready"},
    "about to end": {"process_id": 1, "prepare": {"device": "cpu"}, "status": "ready"},
}
Prepare = Callable[..., str]


@pytest.fixture
def prepare(tmp_path: Path, make_handle: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """The state in which a teacher is taken whose actor is found in the given states, one after another."""
    monkeypatch.setattr(teacher_starter, "_PAUSE_S", 0.0)
    handles = {state: make_handle(**answers) for state, answers in STATES.items()}
    leases = LeaseHolder({})
    leases.is_granted = lambda handle: handle is not handles["about to end"]  # type: ignore[method-assign]
    starter = TeacherStarter(
        validate({"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": ["scratch"]}),
        home=HomeAddress(path=str(tmp_path)),
        nodes={},
        leases=leases,
        import_paths=(),
        progress=Progress("s", quiet=True),
        shutdown=ShutdownRequest(tmp_path / "stop"),
    )

    def prepared(*states: str) -> str:
        found = iter(states)
        definition: Any = SimpleNamespace(name="big")
        handle: Any = starter.prepare(definition, lambda: ("big-actor", handles[next(found)])).handle
        return next(state for state in states if handles[state] is handle)

    return prepared


def test_a_restarting_actor_that_refuses_calls_counts_as_one_death(prepare: Prepare) -> None:
    assert prepare("dies", *["restarts"] * 9, "dies", *["restarts"] * 9, "ready") == "ready"


def test_a_teacher_that_grants_no_lease_is_started_again(prepare: Prepare) -> None:
    assert prepare("about to end", "about to end", "ready") == "ready"


def test_a_teacher_that_dies_again_and_again_ends_the_sweep_with_the_count_of_its_deaths(prepare: Prepare) -> None:
    with pytest.raises(InfrastructureError, match=r"^teacher 'big' died 4 times while it was prepared: .*restarting"):
        prepare(*["dies", "restarts"] * 4)


def test_a_teacher_that_does_not_come_back_ends_the_sweep(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_starter, "ACTOR_TIMEOUT_S", -1.0)
    with pytest.raises(InfrastructureError, match=r"^teacher 'big' did not come back for"):
        prepare("restarts")
