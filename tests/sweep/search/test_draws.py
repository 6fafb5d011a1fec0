"""Draws: stratified, paired between methods, the same in a longer search."""

from typing import Any

import numpy as np
import pytest

from stillhouse.spec.load import validate_stored
from stillhouse.sweep.search.draws import Draw, draw_trials, grid_size, stratified

SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "teachers": {"t": {"model": "mlp"}, "u": {"model": "lenet"}},
    "students": ["lenet", {"model": "mlp", "width": {"uniform": [0.5, 2]}}, {"model": "mlp", "name": "deep"}],
    "methods": {"kd": {"x": {"uniform": [0, 1]}, "y": {"choice": [1, 2]}}, "dist": {"z": {"loguniform": [0.01, 100]}}},
    "search": {"trials_per_method": 20},
}


def draws_of(**search: Any) -> list[Draw]:
    return list(draw_trials(validate_stored({**SPEC, "search": {**SPEC["search"], **search}})))


@pytest.mark.parametrize("key", [0, 1, 12345678901234567890])
def test_the_first_powers_of_two_fill_every_stratum_once(key: int) -> None:
    quantiles = stratified(key, 256)
    for power in range(9):
        strata = np.sort((quantiles[: 2**power] * 2**power).astype(int))
        assert strata.tolist() == list(range(2**power))


def test_a_longer_sequence_begins_with_the_shorter_one() -> None:
    assert np.array_equal(stratified(7, 100)[:13], stratified(7, 13))


def test_sequences_of_two_keys_are_not_correlated() -> None:
    # For independent uniforms the correlation of 4096 pairs has a standard deviation of 1/64.
    assert abs(np.corrcoef(stratified(1, 4096), stratified(2, 4096))[0, 1]) < 5 / 64


def test_trial_i_has_the_same_student_and_teacher_for_every_method() -> None:
    draws = draws_of()
    of_a, of_b = [[draw for draw in draws if draw.method == method] for method in ("kd", "dist")]
    assert len(of_a) == len(of_b) == 20
    assert [(draw.student, draw.teacher) for draw in of_a] == [(draw.student, draw.teacher) for draw in of_b]
    assert [draw.student.name for draw in of_a[:4]] == ["lenet", "mlp", "deep", "lenet"]
    assert [draw.teacher for draw in of_a[:7]] == ["t", "t", "t", "u", "u", "u", "t"]


def test_extending_the_search_keeps_the_trials_that_there_are() -> None:
    short, long = draws_of(trials_per_method=7), draws_of(trials_per_method=30)
    for method in SPEC["methods"]:
        of_short, of_long = ([draw for draw in draws if draw.method == method] for draws in (short, long))
        assert of_long[:7] == of_short


def test_a_method_added_to_the_sweep_leaves_the_others_draws_alone() -> None:
    more = validate_stored({**SPEC, "methods": {"nst": {"x": {"uniform": [0, 1]}}, **SPEC["methods"]}})
    assert [draw for draw in draw_trials(more) if draw.method != "nst"] == draws_of()


def test_another_seed_draws_other_values() -> None:
    first, second = draws_of(seed=0), draws_of(seed=1)
    drawn = [draw.hyperparameters["x"] for draw in (*first, *second) if draw.method == "kd"]
    assert len(set(drawn)) == 40


def test_a_grid_is_the_full_product() -> None:
    spec = validate_stored(
        {
            **SPEC,
            "students": ["lenet", {"model": "mlp", "width": {"choice": [0.5, 1.0]}}],
            "methods": {"kd": {"x": {"choice": [1, 2, 3]}, "y": {"integers": [4, 7]}}, "dist": {"z": 1}},
            "search": {"algorithm": "grid"},
        }
    )
    draws = list(draw_trials(spec))
    # 3 students x 2 teachers x (3 x 4 settings of a, 1 of b)
    assert len(draws) == grid_size(spec) == 3 * 2 * (12 + 1)
    assert {(draw.hyperparameters["x"], draw.hyperparameters["y"]) for draw in draws if draw.method == "kd"} == {
        (x, y) for x in (1, 2, 3) for y in (4, 5, 6, 7)
    }
