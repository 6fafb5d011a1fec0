"""With `search.start: defaults`, the first trial of each method and student has the method's defaults."""

from typing import Any

import pytest

from stillhouse import methods
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.spec.hyperparameter import plain
from stillhouse.spec.load import validate
from stillhouse.spec.priors import Choice
from stillhouse.spec.records import Trial
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.search.draws import Draw, draw_trials, random_draws
from stillhouse.sweep.search.prior_values import nearest
from stillhouse.sweep.search.start import first_settings, first_student

ALGORITHMS = ("random", "grid", "tpe", "nsga2")
SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "teachers": {"big": {"model": "lenet"}, "other": {"model": "mlp"}},
    "students": [{"model": "mlp", "width": {"choice": [0.25, 0.5, 1.0]}}, {"model": "lenet", "name": "net"}],
    "methods": {
        "kd": {},
        "ensemble": {"temperature": {"choice": [9.0, 5.0]}},
        "similarity": {"similarity_weight": {"choice": [30, 300, 3000]}},
        "scratch": {"label_smoothing": {"choice": [0.1, 0.0]}},
    },
    "search": {"trials_per_method": 8, "max_epochs": 2, "start": "defaults", "startup_trials": 3},
}


def spec_of(**search: Any) -> SweepSpec:
    return check(validate({**SPEC, "search": {**SPEC["search"], **search}}))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits")


def first_of_each(draws: Any) -> dict[tuple[str, str], Any]:
    first: dict[tuple[str, str], Any] = {}
    for draw in draws:
        first.setdefault((draw.method, draw.student.name), draw)
    return first


def test_every_shipped_prior_contains_the_papers_value() -> None:
    missing = {
        (name, key)
        for name in methods.names()
        for key, rule in methods.find(name).hyperparameters().items()
        if rule.prior is not None
        and nearest(rule.prior, plain(methods.find(name).defaults()[key])) != plain(methods.find(name).defaults()[key])
    }
    assert missing == set()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_first_trial_of_each_method_and_student_has_the_defaults(algorithm: str, data: ImageData) -> None:
    plan = make_plan(spec_of(algorithm=algorithm), data)
    found: dict[tuple[str, str], Trial] = first_of_each(plan.trials)
    assert {*found} == {(method, student) for method in SPEC["methods"] for student in ("mlp", "net")}
    for (method, student), trial in found.items():
        defaults = {name: plain(value) for name, value in methods.find(method).defaults().items()}
        limited = {"ensemble": {"temperature": 5.0}}.get(method, {})  # the default is 1
        assert trial.hyperparameters == {**defaults, **limited}
        assert trial.student.options == ({"width": 0.5} if student == "mlp" else {})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_algorithms_are_told_the_same_first_points(algorithm: str, data: ImageData) -> None:
    def settings(start: str, chosen: str) -> dict[tuple[str, str], Any]:
        found = first_of_each(make_plan(spec_of(algorithm=chosen, start=start), data).trials)
        return {pair: (trial.hyperparameters, trial.student, trial.teacher) for pair, trial in found.items()}

    assert settings("defaults", algorithm) == settings("defaults", "random")
    if algorithm != "grid":
        assert settings("random", algorithm) != settings("defaults", algorithm)


def test_a_random_search_draws_after_its_start_what_it_drew_before() -> None:
    started, drawn = (list(draw_trials(spec_of(start=start, trials_per_method=20))) for start in ("defaults", "random"))
    for method in SPEC["methods"]:
        for student in ("mlp", "net"):
            of_both = [
                [
                    (draw.hyperparameters, draw.student)
                    for draw in draws
                    if (draw.method, draw.student.name) == (method, student)
                ]
                for draws in (started, drawn)
            ]
            assert of_both[0][1:] == of_both[1][:-1]


def test_a_longer_search_begins_with_the_trials_of_a_shorter_one() -> None:
    short, long = (list(draw_trials(spec_of(trials_per_method=count))) for count in (5, 20))
    for method in SPEC["methods"]:
        of_short, of_long = ([draw for draw in draws if draw.method == method] for draws in (short, long))
        assert of_long[: len(of_short)] == of_short
        assert len(of_short) == 5


def test_a_grid_runs_the_same_trials_whichever_comes_first() -> None:
    started, listed = (list(draw_trials(spec_of(algorithm="grid", start=start))) for start in ("defaults", "random"))
    assert sorted(map(repr, started)) == sorted(map(repr, listed))
    assert started != listed


def test_every_method_has_as_many_trials_as_without_a_start() -> None:
    spec = spec_of()
    student = spec.students[0]
    assert [len(random_draws(spec, "kd", student, count)) for count in (0, 1, 2, 9)] == [0, 1, 2, 9]
    assert [len(list(draw_trials(spec_of(start=start)))) for start in ("defaults", "random")] == [32, 32]


def test_the_first_teacher_teaches_the_first_trial_and_the_others_follow_in_turn() -> None:
    draws: list[Draw] = [draw for draw in draw_trials(spec_of()) if (draw.method, draw.student.name) == ("kd", "net")]
    assert [draw.teacher for draw in draws] == ["big", "other", "big", "other"]


def test_values_that_the_spec_sets_stay() -> None:
    settings = {"temperature": 7.0, "kd_weight": Choice((0.5, 0.9))}
    assert first_settings("kd", settings) == {"temperature": 7.0, "kd_weight": 0.9}
    assert first_student(spec_of().students[1]).options == {}
