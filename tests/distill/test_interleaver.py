"""Jobs that take turns: each has the result that it has alone, and none ends another."""

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stillhouse.distill.interleaver import Interleaver
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.testing.method_trial import MethodTrial


def draws(seed: int, log: list[int]) -> Generator[None, None, list[float]]:
    """Three numbers of the process's generator, one in each part."""
    torch.manual_seed(seed)
    drawn = []
    for _ in range(3):
        drawn.append(float(torch.rand(())))
        log.append(seed)
        yield
    return drawn


def alone(job: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def test_jobs_take_turns_and_each_draws_the_numbers_that_it_draws_alone() -> None:
    log: list[int] = []
    turns = Interleaver()
    futures = [turns.submit(str(seed), draws(seed, log)) for seed in (1, 2)]
    assert [future.result(10) for future in futures] == [alone(draws(seed, [])) for seed in (1, 2)]
    turns.close()
    assert sorted(log) == [1, 1, 1, 2, 2, 2]
    assert log not in ([1, 1, 1, 2, 2, 2], [2, 2, 2, 1, 1, 1])


def test_an_interleaver_for_single_jobs_runs_each_to_its_end() -> None:
    log: list[int] = []
    turns = Interleaver(alone=True)
    for future in [turns.submit(str(seed), draws(seed, log)) for seed in (1, 2)]:
        future.result(10)
    turns.close()
    assert log == [1, 1, 1, 2, 2, 2]


def test_a_job_that_fails_ends_no_other() -> None:
    def fails() -> Generator[None, None, None]:
        yield
        raise KeyError("mine")

    turns = Interleaver()
    failing, other = turns.submit("failing", fails()), turns.submit("other", draws(1, []))
    with pytest.raises(KeyError, match="mine"):
        failing.result(10)
    assert other.result(10) == alone(draws(1, []))
    turns.close()


def test_the_names_of_the_jobs_that_take_turns_are_told_before_their_next_part() -> None:
    told: list[list[str]] = []

    def remembers(expected: str) -> Generator[None, None, list[str]]:
        yield
        return [name for name in told[-1] if name == expected]

    turns = Interleaver(on_change=lambda names: told.append(list(names)))
    assert turns.submit("a", remembers("a")).result(10) == ["a"]
    turns.close()
    assert told[0] == ["a"]
    assert told[-1] == []


class Dropping(Method):
    """Adds noise of the process's generator to the loss, as a student with dropout draws it."""

    def loss(self, step: Any) -> dict[str, torch.Tensor]:
        return {name: term * (1 + 0.1 * torch.rand(())) for name, term in step.supervised_terms().items()}


def test_trainings_that_take_turns_end_with_the_weights_that_they_have_alone() -> None:
    def trainers() -> list[Trainer]:
        kd = MethodTrial(Method(), epochs=2)
        return [MethodTrial(Dropping(), epochs=2).trainer(), kd.trainer(policy=("mixup",)), kd.trainer()]

    def whole(trainer: Trainer) -> Generator[None, None, None]:
        while not trainer.finished:
            yield from trainer.epoch_steps()

    together, apart, turns = trainers(), trainers(), Interleaver()
    for future in [turns.submit(str(number), whole(trainer)) for number, trainer in enumerate(together)]:
        future.result(60)
    turns.close()
    for trainer in apart:
        trainer.fit()
    for one, other in zip(together, apart, strict=True):
        for name, weight in other.student.state_dict().items():
            assert torch.equal(one.student.state_dict()[name], weight), name


class Clocked(Method):
    """Each step takes a second."""

    def loss(self, step: Any) -> dict[str, torch.Tensor]:
        CLOCK[0] += 1.0
        terms: dict[str, torch.Tensor] = step.supervised_terms()
        return terms


CLOCK = [0.0]


def test_the_time_of_the_others_is_not_counted_as_a_trainings_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.distill.trainer.time", SimpleNamespace(perf_counter=lambda: CLOCK[0]))
    trainer = MethodTrial(Clocked(), epochs=1).trainer()
    for _ in trainer.epoch_steps():
        CLOCK[0] += 100.0
    assert trainer.split.batches_per_epoch == 4
    assert trainer.train_seconds == trainer.curve[0]["seconds"] == 4.0
