"""Sentences of a plan for its reader."""

from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.spec.load import validate
from stillhouse.spec.schema import SearchBudget, SweepSpec
from stillhouse.sweep.planning.notes import (
    budget_notes,
    duplicate_notes,
    limit_notes,
    search_notes,
    skip_notes,
    start_notes,
    step_notes,
)
from stillhouse.sweep.planning.survey import Skipped


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [("big", "kd is left out for mlp with big: too small"), (None, "kd is left out for mlp: too small")],
)
def test_a_skipped_pair_is_named_with_its_reason(teacher: str | None, sentence: str) -> None:
    assert skip_notes([Skipped(method="kd", student="mlp", teacher=teacher, reason="too small", trials=2)]) == [sentence]


def test_dropped_trials_are_counted() -> None:
    assert duplicate_notes({"kd": 1, "scratch": 3}) == [
        "kd: 1 trial dropped, equal to others in all settings",
        "scratch: 3 trials dropped, equal to others in all settings",
    ]
    assert limit_notes({"mlp": ("macs = 9 is over the limit of 8", 2)}, None) == [
        "mlp: 2 trials dropped by search.limits: macs = 9 is over the limit of 8"
    ]


def test_a_budget_names_every_bound_that_it_has() -> None:
    assert budget_notes(SearchBudget()) == []
    assert budget_notes(SearchBudget(epochs=50, gpu_hours=1.5)) == [
        "search.budget: no trial starts beyond 50 epochs or 1.5 gpu-hours in all"
    ]


def test_a_search_that_is_not_adaptive_has_no_note() -> None:
    assert search_notes(None, [], []) == []


@pytest.mark.parametrize(
    ("changed", "noted"),
    [
        ({"start": "defaults", "trials_per_method": 2}, True),  # two students
        ({"start": "defaults", "trials_per_method": 3}, False),
        ({"start": "random", "trials_per_method": 2}, False),
        ({"start": "defaults", "trials_per_method": 2, "algorithm": "grid"}, False),
    ],
)
def test_a_search_of_nothing_but_defaults_is_noted(spec_with: Callable[..., SweepSpec], changed: Any, noted: bool) -> None:
    notes = start_notes(spec_with("search", changed))
    assert [note.split(" gives ")[0] for note in notes] == ["search.trials_per_method = 2"] * noted


def test_fixed_hyperparameters_need_no_note_about_the_start(spec_with: Callable[..., SweepSpec]) -> None:
    spec = spec_with("search", {"start": "defaults", "trials_per_method": 1})
    assert start_notes(spec.model_copy(update={"methods": {"kd": {"temperature": 4.0}}})) == []


@pytest.mark.parametrize(("samples", "epochs", "batch_size", "steps"), [(120, 8, 64, 16), (120, 8, 16, None), (64, 49, 64, 49)])
def test_a_training_of_very_few_steps_is_noted(samples: int, epochs: int, batch_size: int, steps: int | None) -> None:
    """The last batch of 120 images in batches of 64 has 56 images: 2 steps in an epoch."""
    raw = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": {"scratch": {}}}
    spec = validate({**raw, "search": {"max_epochs": epochs}, "training": {"batch_size": batch_size}})
    notes = step_notes(spec, samples)
    assert [f"a training has {steps} steps" in note for note in notes] == [True] * (steps is not None)
