"""The printed plan has the numbers of the plan."""

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from stillhouse.data.datasets import load_dataset
from stillhouse.sweep.planning.plan import Plan, make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.preview.terminal import print_lines, print_plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    spec = {
        "name": "printed",
        "dataset": {"name": "digits"},
        "teachers": {"big": {"model": "lenet", "train": {"epochs": 2}}},
        "students": [{"model": "mlp", "name": "small", "hidden": [3]}],
        "methods": {"kd": {}},
        "search": {"trials_per_method": 2, "max_epochs": 3, "confirm_seeds": 1},
    }
    return make_plan(check(spec), load_dataset("digits"))


def printed(plan: Plan) -> list[str]:
    stream = io.StringIO()
    print_plan(plan, Console(file=stream, width=160))
    return stream.getvalue().splitlines()


def test_students_methods_and_teachers_are_listed_with_their_numbers(plan: Plan) -> None:
    rows = {words[0]: words[1:] for line in printed(plan) if (words := line.split())}
    # 64 pixels, 3 hidden units, 10 classes.
    assert rows["small"][:3] == ["hidden=[3]", f"{64 * 3 + 3 + 3 * 10 + 10}", f"{64 * 3 + 3 * 10}"]
    assert rows["kd"] == ["2", "0"]
    assert rows["scratch"] == ["1", "1"]
    assert rows["big"][0] == "lenet"
    assert rows["big"][-2:] == ["trained", "once"]


def test_the_first_line_counts_the_trials_of_both_phases(plan: Plan) -> None:
    assert printed(plan)[0] == f"printed: 3 trials, then up to {plan.confirm_trials} to confirm"


def test_every_note_is_printed(plan: Plan) -> None:
    lines = printed(plan)
    assert plan.notes
    assert [line for line in lines if line.startswith("note: ")] == [f"note: {note}" for note in plan.notes]


def test_brackets_in_a_line_are_no_markup() -> None:
    stream = io.StringIO()
    print_lines(["hidden=[3] [bold]"], Console(file=stream, width=40))
    assert stream.getvalue() == "hidden=[3] [bold]\n"


def test_where_the_search_starts_is_printed_unless_it_is_drawn(plan: Plan) -> None:
    def lines(start: str) -> list[str]:
        search = plan.spec.search.model_copy(update={"start": start})
        changed = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"search": search}))
        return [line for line in printed(changed) if line.startswith("each method and student starts at the method's defaults")]

    assert (len(lines("defaults")), len(lines("random"))) == (1, 0)
    assert plan.to_dict()["start"] == "defaults"


def test_how_students_and_teachers_are_trained_is_printed_with_the_values_of_the_recipe() -> None:
    def lines(**sections: Any) -> list[str]:
        spec: dict[str, Any] = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": {"kd": {}}}
        spec["teachers"] = {"big": {"model": "lenet"}}
        plan = make_plan(check({**spec, **sections}), load_dataset("digits"))
        return [line for line in printed(plan) if line.startswith("training of")]

    today = "adamw at 0.003 with one_cycle, batches of 64, gradients up to 5, recomputed statistics of BatchNorm"
    first = "sgd at 0.05 with cosine, batches of 128, unbounded gradients, running statistics of BatchNorm"
    warm = (
        "sgd at 0.1 with cosine after 2 epochs of warm-up, batches of 64, gradients up to 5, recomputed statistics of BatchNorm"
    )
    assert lines() == [f"training of students, big: {today}"]
    assert lines(recipe=1) == [f"training of students, big: {first}"]
    assert lines(training={"learning_rate": 0.1, "warmup_epochs": 2}) == [
        f"training of students: {warm}",
        f"training of big: {today}",
    ]
