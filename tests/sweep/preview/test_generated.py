"""Samples that methods without data generate: the numbers by hand."""

from typing import Any

from stillhouse.data.datasets import load_dataset
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.preview.generated import generated_samples


def test_only_trials_that_see_no_data_are_counted_by_their_generator_steps(measured_spec: dict[str, Any]) -> None:
    methods = {
        "scratch": {},
        "kd": "defaults",
        # Calls the teacher on images that it changes, and sees the data set.
        "boundary_samples": "defaults",
        "data_free_adversarial": {"generator_steps": 10, "generated_batch": 32, "student_steps": 5, "generator_form": "log"},
        "data_free_learning": {"generator_steps": 10, "generated_batch": 64},
    }
    students = measured_spec["students"][:1]
    spec = check(
        measured_spec | {"methods": methods, "students": students, "search": {"trials_per_method": 1, "max_epochs": 3}}
    )
    data = load_dataset("digits", validation=100, options={"limit": 500})
    found = {each.trial.method: (each.epochs, each.samples) for each in generated_samples(make_plan(spec, data), data)}
    # Three epochs of 4 steps, at least 10 in all; 5 updates of the student and one of the generator in each.
    assert found == {"data_free_adversarial": (3, 3 * 4 * 6 * 32), "data_free_learning": (3, 3 * 4 * 64)}
