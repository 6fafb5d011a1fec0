"""Adaptive search: what a study chooses follows from the seed and the results, whichever trial ends first."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest

from stillhouse.spec.priors import Choice, Integers, LogUniform, Prior, Uniform
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import SearchBudget
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.draws import Draw
from stillhouse.sweep.search.optuna_studies import Memory, Study, StudyPlan
from stillhouse.sweep.search.prior_values import value_at
from stillhouse.sweep.search.trial_queue import StudyQueue, start_queue

STUDENTS = tuple(StudentChoice(name="s", model="mlp", options={"hidden": [width]}) for width in (8, 16, 32))
MAX, MIN = {"validation_accuracy": "max"}, {"validation_accuracy": "max", "parameters": "min"}
Score = Callable[[Trial], Mapping[str, float] | None]


def make_trial(draw: Draw) -> Trial:
    key = repr((draw.method, draw.student.options, draw.teacher, sorted(draw.hyperparameters.items())))
    return Trial(
        key=key,
        student=draw.student,
        method=draw.method,
        teacher=draw.teacher,
        hyperparameters=dict(draw.hyperparameters),
        epochs=3,
    )


def plan_of(
    settings: Mapping[str, Any],
    *,
    method: str = "m",
    trials: int = 30,
    startup: int = 5,
    students: tuple[StudentChoice, ...] = STUDENTS[:1],
    teachers: tuple[str | None, ...] = (None,),
) -> StudyPlan:
    def draw(number: int) -> Draw:
        generator = random.Random(number)
        values = {
            name: value_at(value, generator.random()) if isinstance(value, Prior) else value for name, value in settings.items()
        }
        return Draw(method, students[number % len(students)], teachers[number % len(teachers)], values)

    draws = [draw(number) for number in range(startup + 8)]
    return StudyPlan(
        method=method,
        label="s",
        settings=settings,
        students=students,
        teachers=teachers,
        trials=trials,
        fixed=tuple(draws[:startup]),
        reserve=tuple(draws[startup:]),
    )


def study_of(plan: StudyPlan, algorithm: str = "tpe", *, objectives: Mapping[str, str] = MAX, **options: Any) -> Study:
    return Study(
        plan,
        **{
            "algorithm": algorithm,
            "objectives": objectives,
            "seed": 0,
            "startup_trials": len(plan.fixed),
            "ahead": 3,
            "make_trial": make_trial,
            **options,
        },
    )


def record_of(trial: Trial, metrics: Mapping[str, float] | None) -> TrialRecord:
    return TrialRecord(
        trial=trial,
        status="failed" if metrics is None else "finished",
        epochs_run=trial.epochs,
        metrics=dict(metrics or {}),
    )


def run_queue(
    studies: list[Study], score: Score, *, order: int = 0, records: dict[str, TrialRecord] | None = None, most: int = 10_000
) -> tuple[StudyQueue, dict[str, TrialRecord]]:
    """Runs trials until the queue has none, or `most` have ended; which of those under way ends next is random."""
    records = {} if records is None else records
    queue = StudyQueue(studies, records, BudgetTracker(SearchBudget()), lead=3)
    generator = random.Random(order)
    under_way = start_queue(queue)
    while under_way and most:
        trial = under_way.pop(generator.randrange(len(under_way)))
        records[trial.key] = record_of(trial, score(trial))
        queue.add(records[trial.key])
        under_way += start_queue(queue)
        most -= 1
    return queue, records


def peak(trial: Trial) -> dict[str, float]:
    """Best at weight 100, on a scale of decades."""
    return {"validation_accuracy": 1 - 0.1 * (math.log10(trial.hyperparameters["weight"]) - 2) ** 2, "parameters": 1.0}


WEIGHT = {"weight": LogUniform(1e-3, 1e5), "fixed": 3}
TWO = {**WEIGHT, "temperature": Uniform(1, 10)}


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
@pytest.mark.parametrize("objectives", [MAX, MIN])
def test_the_trials_are_the_same_in_whichever_order_results_arrive(algorithm: str, objectives: dict[str, str]) -> None:
    queues = [
        run_queue([study_of(plan_of(WEIGHT), algorithm, objectives=objectives)], peak, order=order)[0] for order in range(3)
    ]
    assert len(queues[0].known) == 30
    assert list(queues[1].known) == list(queues[0].known) == list(queues[2].known)
    assert all(queue.finished for queue in queues)


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
@pytest.mark.parametrize("ended_after", [1, 4, 13, 29])
def test_a_search_goes_on_from_its_records_alone(algorithm: str, ended_after: int) -> None:
    whole, _ = run_queue([study_of(plan_of(TWO), algorithm)], peak)
    _, records = run_queue([study_of(plan_of(TWO), algorithm)], peak, order=1, most=ended_after)
    assert len(records) == ended_after
    rerun: list[str] = []

    def score(trial: Trial) -> dict[str, float]:
        rerun.append(trial.key)
        return peak(trial)

    resumed, _ = run_queue([study_of(plan_of(TWO), algorithm)], score, order=2, records=records)
    assert list(resumed.known) == list(whole.known)
    assert len(rerun) == 30 - ended_after, "nothing finished runs again"


@pytest.mark.parametrize("objectives", [MAX, MIN])
@pytest.mark.parametrize("ended_after", [19, 41])
def test_a_search_that_looks_at_a_part_of_its_results_goes_on_the_same(ended_after: int, objectives: dict[str, str]) -> None:
    def study() -> Study:
        return study_of(plan_of(TWO, trials=60, students=STUDENTS), objectives=objectives, history_limit=18)

    whole, _ = run_queue([study()], peak)
    _, records = run_queue([study()], peak, order=1, most=ended_after)
    resumed, _ = run_queue([study()], peak, order=2, records=records)
    assert list(resumed.known) == list(whole.known)
    unbounded, _ = run_queue([study_of(plan_of(TWO, trials=60, students=STUDENTS), objectives=objectives)], peak)
    # As long as all can be looked at nothing is different.
    assert list(whole.known)[:18] == list(unbounded.known)[:18]
    assert list(whole.known) != list(unbounded.known)


def test_tpe_comes_closer_to_the_best_than_its_random_start() -> None:
    _, records = run_queue([study_of(plan_of(WEIGHT, trials=40, startup=8))], peak)
    distances = [abs(math.log10(record.trial.hyperparameters["weight"]) - 2) for record in records.values()]
    assert sum(distances[-10:]) / 10 < 0.5 * sum(distances[:8]) / 8
    assert min(distances) < 0.3


def test_the_children_of_nsga2_come_from_what_was_good() -> None:
    _, records = run_queue([study_of(plan_of(TWO, trials=60, startup=8), "nsga2")], peak)
    distances = [abs(math.log10(record.trial.hyperparameters["weight"]) - 2) for record in records.values()]
    assert sum(distances[-15:]) / 15 < sum(distances[:8]) / 8


def test_several_objectives_are_searched_along_the_whole_front() -> None:
    def score(trial: Trial) -> dict[str, float]:
        width = trial.student.options["hidden"][0]
        return {"validation_accuracy": 0.9 + width / 1000 + peak(trial)["validation_accuracy"] / 100, "parameters": width}

    for algorithm in ("tpe", "nsga2"):
        _, records = run_queue([study_of(plan_of(WEIGHT, students=STUDENTS, trials=40), algorithm, objectives=MIN)], score)
        late = Counter(record.trial.student.options["hidden"][0] for record in list(records.values())[10:])
        assert set(late) == {8, 16, 32}, "each size is the best of its size"


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
@pytest.mark.parametrize("objectives", [MAX, MIN])
@pytest.mark.parametrize(
    "bad", [None, {}, {"validation_accuracy": math.nan}, {"parameters": 1.0}, {"validation_accuracy": math.inf}]
)
def test_methods_that_diverge_hang_nothing_and_are_kept_away_from(
    algorithm: str, objectives: dict[str, str], bad: dict[str, float] | None
) -> None:
    def score(trial: Trial) -> Mapping[str, float] | None:
        return bad if trial.hyperparameters["weight"] > 100 else peak(trial)

    queue, records = run_queue([study_of(plan_of(WEIGHT, trials=40, startup=8), algorithm, objectives=objectives)], score)
    assert queue.finished
    assert len(records) == 40
    early, late = list(records.values())[:8], list(records.values())[-10:]
    diverged = [sum(record.trial.hyperparameters["weight"] > 100 for record in part) / len(part) for part in (early, late)]
    assert diverged[1] <= max(diverged[0], 0.5)


def test_a_search_all_of_whose_trials_fail_ends() -> None:
    for algorithm in ("tpe", "nsga2"):
        queue, records = run_queue([study_of(plan_of(WEIGHT), algorithm, objectives=MIN)], lambda trial: None)
        assert queue.finished
        assert len(records) == 30


def test_a_trial_that_the_infrastructure_lost_ends_the_queue_without_waiting() -> None:
    queue = StudyQueue([study_of(plan_of(WEIGHT))], {}, BudgetTracker(SearchBudget()), lead=3)
    for trial in start_queue(queue):
        queue.lose(trial.key)
    assert queue.next() is None
    assert queue.finished


def test_equal_suggestions_are_trained_once_and_a_small_space_ends_early() -> None:
    settings = {"kernel": Choice(("linear", "poly", [1, 2])), "power": Integers(1, 2)}
    trained: list[str] = []

    def score(trial: Trial) -> dict[str, float]:
        trained.append(trial.key)
        return {"validation_accuracy": 0.5 + trial.hyperparameters["power"] / 10}

    queue, records = run_queue([study_of(plan_of(settings, trials=50, startup=3))], score)
    assert queue.finished
    assert len(trained) == len(set(trained)) == len(records) <= 6
    assert queue.expected == 50, "duplicates count as trials, as with random search"


def test_a_trial_of_two_studies_is_handed_out_once() -> None:
    studies = [study_of(plan_of({"only": 1}, trials=1, startup=1)) for _ in range(2)]
    queue, records = run_queue(studies, lambda trial: {"validation_accuracy": 0.5})
    assert len(records) == len(queue.known) == 1
    assert queue.finished


def test_what_must_not_start_is_reported_to_the_study_and_another_point_is_found() -> None:
    def allowed(draw: Draw) -> Trial | None:
        return make_trial(draw) if draw.hyperparameters["weight"] < 1 else None

    queue, records = run_queue([study_of(plan_of(WEIGHT), make_trial=allowed)], lambda trial: {"validation_accuracy": 0.5})
    assert records
    assert all(record.trial.hyperparameters["weight"] < 1 for record in records.values())
    assert queue.finished


def test_every_value_lies_within_its_prior_and_reads_the_same_everywhere() -> None:
    settings = {"a": Uniform(0.1, 0.3), "b": LogUniform(1e-4, 10), "c": Integers(2, 9), "d": Choice(([1, 2], "x"))}
    _, records = run_queue(
        [study_of(plan_of(settings, students=STUDENTS, teachers=("t", "u")))], lambda trial: {"validation_accuracy": 0.5}
    )
    for record in records.values():
        values = record.trial.hyperparameters
        assert 0.1 <= values["a"] <= 0.3
        assert 1e-4 <= values["b"] <= 10
        assert values["c"] in range(2, 10)
        assert values["d"] in ([1, 2], "x")
        assert values["a"] == float(f"{values['a']:.6g}")
    assert {record.trial.teacher for record in records.values()} == {"t", "u"}


def test_methods_go_in_rounds_also_when_one_is_slower() -> None:
    studies = [study_of(plan_of(WEIGHT, method=method)) for method in "abc"]
    queue = StudyQueue(studies, {}, BudgetTracker(SearchBudget()), lead=3)
    under_way = start_queue(queue)
    assert Counter(trial.method for trial in under_way) == {"a": 5, "b": 5, "c": 5}
    assert [trial.method for trial in under_way[:6]] == list("abcabc")
    # Nothing of c ends.
    waiting = [trial for trial in under_way if trial.method == "c"]
    running = [trial for trial in under_way if trial.method != "c"]
    while running:
        trial = running.pop(0)
        queue.add(record_of(trial, peak(trial)))
        running += start_queue(queue)
    counts = Counter(trial.method for trial in queue.known.values())
    assert counts["c"] == 5
    assert counts["a"] == counts["b"] == 5 + 3, "ahead of the slowest by the lead and no more"
    assert not queue.finished
    for trial in waiting:
        queue.add(record_of(trial, peak(trial)))
    assert start_queue(queue)


def test_a_budget_ends_the_search_with_as_many_trials_of_each_method() -> None:
    for trials in (4, 7, 20):
        studies = [study_of(plan_of(WEIGHT, method=method)) for method in "abc"]
        queue = StudyQueue(studies, {}, BudgetTracker(SearchBudget(trials=trials)), lead=3)
        under_way = start_queue(queue)
        started = list(under_way)
        while under_way:
            trial = under_way.pop(0)
            queue.add(record_of(trial, peak(trial)))
            fresh = start_queue(queue)
            under_way += fresh
            started += fresh
        assert len(started) == trials
        counts = Counter(trial.method for trial in started)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert queue.finished


def test_optuna_keeps_quiet() -> None:
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


def test_asking_again_with_a_memory_gives_the_same_trials() -> None:
    for algorithm in ("tpe", "nsga2"):
        memory: Memory = {}
        first, records = run_queue([study_of(plan_of(TWO), algorithm, memory=memory)], peak)
        fresh, _ = run_queue([study_of(plan_of(TWO), algorithm)], peak)
        kept = json.loads(json.dumps(memory))
        again, _ = run_queue([study_of(plan_of(TWO), algorithm, memory=kept)], peak, records=dict(records))
        assert kept == memory, "nothing was found out again"
        assert list(first.known) == list(fresh.known) == list(again.known)

        def worse(trial: Trial) -> dict[str, float]:
            return {name: 1 - value for name, value in peak(trial).items()}

        other, _ = run_queue([study_of(plan_of(TWO), algorithm, memory=memory)], worse)
        assert list(other.known)[:5] == list(first.known)[:5]
        assert list(other.known) != list(first.known), "the reported results decide, not the memory"


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_minimising_the_negative_of_a_value_chooses_the_trials_that_maximising_it_does(algorithm: str) -> None:
    def error(trial: Trial) -> dict[str, float]:
        return {"validation_error": -peak(trial)["validation_accuracy"]}

    _, highest = run_queue([study_of(plan_of(TWO), algorithm, objectives=MAX)], peak, order=1)
    _, lowest = run_queue([study_of(plan_of(TWO), algorithm, objectives={"validation_error": "min"})], error, order=1)
    assert lowest.keys() == highest.keys()
