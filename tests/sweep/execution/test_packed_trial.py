"""The Trainable of a packed trial, with workers that are scripted and Ray's `get` that returns what they answer."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from stillhouse.errors import InfrastructureError
from stillhouse.spec.records import Trial
from stillhouse.sweep.execution import packed_trial
from stillhouse.sweep.execution.packed_trial import PLACE_CONFIG, PackedTrial
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG

MakeTrial = Callable[..., Trial]


class ScriptedWorker:
    """Records its calls; `dies` makes every call but `suspects` fail as one of a dead process."""

    def __init__(self, suspects: list[str] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.dies = False
        self._suspects = suspects

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: (self, method, arguments))


def answer(call: tuple[ScriptedWorker, str, tuple[Any, ...]]) -> Any:
    worker, method, arguments = call
    if method == "suspects":
        return worker._suspects
    worker.calls.append((method, arguments[0]))
    if worker.dies:
        raise RayActorError(error_msg="the actor died because its worker process has died")
    return {"done": False}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, make_trial: MakeTrial) -> Callable[..., PackedTrial]:
    monkeypatch.setattr(packed_trial, "ray", SimpleNamespace(get=answer))

    def make(workers: list[ScriptedWorker], key: str = "a", place: int = 0) -> PackedTrial:
        trial = PackedTrial.__new__(PackedTrial)
        trial.setup({TRIAL_CONFIG: make_trial(key).model_dump_json(), PLACE_CONFIG: place}, workers)
        return trial

    return make


def test_a_trial_begins_with_its_first_step_in_its_own_worker(make: Callable[..., PackedTrial]) -> None:
    workers = [ScriptedWorker(), ScriptedWorker()]
    trial = make(workers, place=1)
    trial.step()
    trial.step()
    trial.cleanup()
    assert workers[0].calls == []
    assert workers[1].calls == [("begin", "a"), ("step", "a"), ("step", "a"), ("end", "a")]


def test_the_next_trial_of_the_process_ends_the_last_one_first(make: Callable[..., PackedTrial], make_trial: MakeTrial) -> None:
    workers = [ScriptedWorker(), ScriptedWorker()]
    trial = make(workers)
    trial.step()
    assert trial.reset_config({TRIAL_CONFIG: make_trial("b").model_dump_json(), PLACE_CONFIG: 1})
    trial.step()
    assert workers[0].calls == [("begin", "a"), ("step", "a"), ("end", "a")]
    assert workers[1].calls == [("begin", "b"), ("step", "b")]


def test_a_trial_that_never_stepped_has_nothing_to_end(make: Callable[..., PackedTrial]) -> None:
    worker = ScriptedWorker()
    make([worker]).cleanup()
    assert worker.calls == []


@pytest.mark.parametrize("suspects", [None, ["b", "a"]], ids=["not known", "among those that ran"])
def test_the_death_of_a_worker_counts_against_the_trials_that_it_ran(
    make: Callable[..., PackedTrial], suspects: list[str] | None
) -> None:
    worker = ScriptedWorker(suspects)
    worker.dies = True
    with pytest.raises(RayActorError, match="because its worker process has died"):
        make([worker]).step()


def test_the_death_of_a_worker_does_not_count_against_a_trial_that_waited(make: Callable[..., PackedTrial]) -> None:
    worker = ScriptedWorker(["b"])
    worker.dies = True
    with pytest.raises(InfrastructureError, match="ended in another trial") as caught:
        make([worker]).step()
    # Tune writes causes and contexts into the text in which deaths are looked for.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
