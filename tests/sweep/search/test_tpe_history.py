"""What TPE sees: bounded, the same for the same results, and never without the best ones."""

import random
from collections.abc import Sequence
from itertools import pairwise

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from stillhouse.sweep.search.tpe_history import BoundedHistory

MAX, MIN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
MOST = 35


def study_in(window: BoundedHistory, directions: Sequence[StudyDirection]) -> optuna.Study:
    return optuna.create_study(directions=directions, storage=window, sampler=optuna.samplers.RandomSampler(seed=0))


def visible(directions: Sequence[StudyDirection], results: Sequence[Sequence[float] | None]) -> list[optuna.trial.FrozenTrial]:
    """The visible trials after these results; None is a point that cannot run."""
    study = study_in(BoundedHistory(directions, MOST), directions)
    for values in results:
        optuna_trial = study.ask(SPACE)
        optuna_trial.set_constraint("runs", 1.0 if values is None else 0.0)
        study.tell(optuna_trial, [0.0] * len(directions) if values is None else list(values))
        assert len(study.get_trials(deepcopy=False)) <= MOST
    return study.get_trials(deepcopy=False)


@pytest.mark.parametrize("many", [MOST + 1, 10 * MOST, 10 * MOST + 7])
def test_however_much_is_reported_a_bounded_part_is_in_sight_and_the_best_always(many: int) -> None:
    values = random.Random(0).sample(range(10_000), many)
    seen = [trial.values[0] for trial in visible([MAX], [[value] for value in values])]
    assert 25 <= len(seen) <= MOST
    assert set(sorted(values)[-5:]) <= set(seen)


def test_less_than_the_bound_is_in_sight_whole() -> None:
    assert [trial.number for trial in visible([MIN], [[float(number)] for number in range(MOST)])] == list(range(MOST))


def test_the_rest_is_thinned_over_the_whole_search() -> None:
    # The latest are the best, so that what is seen of the beginning was not kept for being good.
    seen = [trial.number for trial in visible([MAX], [[float(number)] for number in range(MOST + 1)])]
    assert len(seen) == 25
    assert seen[0] == 0
    early = [number for number in seen if number < MOST - 5]
    assert max(later - earlier for earlier, later in pairwise(early)) <= 2


def test_of_several_objectives_what_nothing_beats_stays() -> None:
    front = [[0.9, 1.0], [0.95, 2.0], [0.99, 3.0]]
    generator = random.Random(0)
    beaten = [[0.5 * generator.random(), 4.0 + generator.random()] for _ in range(4 * MOST)]
    results = [*beaten[:20], *front, *beaten[20:]]
    assert all(values in [trial.values for trial in visible([MAX, MIN], results)] for values in front)


def test_points_that_cannot_run_are_not_the_best() -> None:
    seen = visible([MIN], [None, [1.0]] * (3 * MOST))
    feasible = [trial for trial in seen if trial.constraints["runs"] == 0]
    assert 0 < len(seen) - len(feasible) < len(feasible)


def test_trials_under_way_are_in_sight_and_what_was_dropped_is_not() -> None:
    window = BoundedHistory([MAX], MOST)
    study = study_in(window, [MAX])
    running = study.ask(SPACE)
    for number in range(3 * MOST):
        study.tell(study.ask(SPACE), float(number))
        study.tell(study.ask(SPACE), state=TrialState.FAIL)
    seen = study.get_trials(deepcopy=False)
    assert seen[0].number == running.number
    assert {trial.state for trial in seen} == {TrialState.RUNNING, TrialState.COMPLETE}
    study.tell(running, 1.0)


def test_what_stays_follows_from_what_was_reported() -> None:
    generator = random.Random(0)
    results = [None if generator.random() < 0.2 else [generator.random()] for _ in range(5 * MOST)]
    seen = [[(trial.number, trial.values) for trial in visible([MAX], results)] for _ in range(2)]
    assert seen[0] == seen[1]


def test_a_list_that_is_given_away_is_a_copy() -> None:
    study = study_in(BoundedHistory([MAX], MOST), [MAX])
    study.tell(study.ask(SPACE), 1.0)
    study.trials[0].values = [5.0]
    study.get_trials(deepcopy=False).clear()
    assert [trial.values for trial in study.trials] == [[1.0]]
