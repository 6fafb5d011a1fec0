"""Every hyper-parameter of a sweep's methods is spelled out before anything is planned."""

from typing import Any

import pytest

from stillhouse import methods, tasks
from stillhouse.distill.method import ANY_TASK
from stillhouse.spec.combinations import Soundness
from stillhouse.spec.load import validate
from stillhouse.spec.priors import Choice, Uniform
from stillhouse.sweep.planning.method_settings import MethodSettings, can_serve, prior_corners, resolve_methods
from stillhouse.sweep.planning.spec_check import check

TASK = tasks.find()


def names_the_task(name: str) -> bool:
    named = methods.find(name).tasks
    return ANY_TASK in named or TASK.name in named


def resolved(section: Any, **search: Any) -> MethodSettings:
    raw: dict[str, Any] = {
        "name": "s",
        "dataset": {"name": "digits"},
        "teachers": {"big": {"model": "lenet"}},
        "students": ["mlp"],
    }
    if section is not None:
        raw["methods"] = section
    return resolve_methods(validate({**raw, "search": search}), Soundness(()), TASK)


def test_the_baseline_comes_first_and_unnamed_values_are_searched() -> None:
    found = resolved({"kd": {"kd_weight": 1}})
    assert list(found.settings) == [methods.baseline(), "kd"]
    assert found.settings["kd"]["kd_weight"] == 1.0
    assert found.settings["kd"]["temperature"] == methods.find("kd").hyperparameters()["temperature"].prior
    assert not found.problems


@pytest.mark.parametrize(("section", "search"), [({"kd": "defaults"}, {}), ({"kd": {}}, {"algorithm": "grid"})])
def test_defaults_and_a_grid_fix_unnamed_values(section: Any, search: dict[str, Any]) -> None:
    assert resolved(section, **search).settings["kd"] == methods.find("kd").defaults()


def test_no_section_means_every_method_that_serves_the_task() -> None:
    assert set(resolved(None).settings) == {name for name in methods.names() if names_the_task(name)}


def test_a_wrong_key_drops_its_method_alone() -> None:
    found = resolved({"kd": {"temprature": 2}, "attention_transfer": {}})
    assert list(found.settings) == [methods.baseline(), "attention_transfer"]
    (problem,) = found.problems
    assert problem.key == "methods.kd.temprature"
    assert "did you mean 'temperature'" in problem.message


def test_each_prior_is_tried_at_both_of_its_ends() -> None:
    settings = {"a": Uniform(low=0.0, high=1.0), "b": 3, "c": Uniform(low=2.0, high=5.0)}
    assert list(prior_corners(settings)) == [
        {"a": 0.0, "b": 3, "c": 2.0},
        {"a": 1.0, "b": 3, "c": 2.0},
        {"a": 0.0, "b": 3, "c": 5.0},
    ]


def test_a_method_serves_the_tasks_that_it_names_and_a_broken_setting_is_another_problem() -> None:
    assert not names_the_task("gan_compression")
    for name in methods.names():
        assert can_serve(name, {}, TASK) == names_the_task(name), name
    assert can_serve("kd", {"temperature": -1.0}, TASK)


def test_an_option_that_came_later_is_part_of_a_trial_only_where_its_value_is_another_one() -> None:
    def settings(given: Any) -> Any:
        spec = {"name": "s", "dataset": {"name": "digits"}, "students": ["lenet"], "teachers": {"t": {"model": "lenet"}}}
        return (check({**spec, "methods": {"fitnets": given}}).methods or {})["fitnets"]

    assert "num_stages" not in settings({})
    assert "num_stages" not in settings({"num_stages": 2})
    assert settings({"num_stages": 1})["num_stages"] == 1
    assert settings({"num_stages": {"choice": [1, 2]}})["num_stages"] == Choice((1, 2))
