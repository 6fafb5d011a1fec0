"""Training defaults by release: new specs get the newest ones, stored specs keep theirs."""

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import SpecError
from stillhouse.spec.load import in_recipe, load_spec, spec_to_dict, spec_to_yaml, validate, validate_stored
from stillhouse.spec.recipes import FIRST, NEWEST, recipe_defaults, recipe_of, with_recipe, without
from stillhouse.spec.training import Training

RAW: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "students": ["lenet"],
    "teachers": {"big": {"model": "resnet8"}},
}


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "s.yaml"
    path.write_text(json.dumps(RAW | sections))  # JSON is YAML
    return path


def test_a_spec_file_without_training_keys_gets_a_bound_on_gradients_for_students_and_trained_teachers(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path))
    assert spec.recipe == NEWEST
    assert (spec.training.gradient_clip, spec.teachers["big"].train.gradient_clip) == (5.0, 5.0)


TODAY = {
    "batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "schedule": "one_cycle",
    "gradient_clip": 5.0,
    "batchnorm_statistics": "recomputed",
    "mixed_passes": "all",
}


def test_a_new_spec_has_todays_defaults_as_values_from_a_file_and_from_python(tmp_path: Path) -> None:
    from_file, from_python = load_spec(written(tmp_path)), validate(RAW)
    assert from_python == from_file
    for training in (from_file.training, from_file.teachers["big"].train):
        plain = training.model_dump()
        assert {key: plain[key] for key in TODAY} == TODAY


def test_a_stored_spec_without_a_recipe_is_trained_as_the_first_release_did() -> None:
    spec = validate_stored(RAW)
    assert spec.recipe == FIRST
    for training in (spec.training, spec.teachers["big"].train):
        assert (training.batch_size, training.optimizer, training.peak_learning_rate) == (128, "sgd", 0.05)
        assert (training.schedule, training.gradient_clip, training.batchnorm_statistics) == ("cosine", None, "running")


@pytest.mark.parametrize(
    ("given", "optimizer", "rate"),
    [
        ({"learning_rate": 0.1}, "sgd", 0.1),  # a rate alone was always SGD's; with adamw it would diverge
        ({"momentum": 0.8}, "sgd", 0.05),
        ({"nesterov": True}, "sgd", 0.05),
        ({"optimizer": "sgd"}, "sgd", 0.05),
        ({"optimizer": "adam"}, "adam", 0.003),
        ({"optimizer": "adam", "learning_rate": 0.01}, "adam", 0.01),
        ({"optimizer": "adamw", "learning_rate": None}, "adamw", None),
        ({"learning_rate": None}, "adamw", None),
    ],
)
def test_optimizer_and_rate_fit_each_other(given: dict[str, Any], optimizer: str, rate: float | None) -> None:
    training = validate(RAW | {"training": given}).training
    assert (training.optimizer, training.learning_rate) == (optimizer, rate)


def test_a_warm_up_of_the_users_has_a_schedule_in_which_it_works() -> None:
    assert validate(RAW | {"training": {"warmup_epochs": 1}}).training.schedule == "cosine"
    assert validate(RAW | {"training": {"warmup_epochs": 0}}).training.schedule == "one_cycle"


@pytest.mark.parametrize("value", [None, 1.5])
def test_what_the_user_sets_stays_also_if_it_is_null(tmp_path: Path, value: float | None) -> None:
    spec = load_spec(written(tmp_path, training={"gradient_clip": value}))
    assert spec.training.gradient_clip == value
    assert in_recipe(spec, FIRST).training.gradient_clip == value
    assert in_recipe(spec, FIRST).teachers["big"].train.gradient_clip is None


def test_a_new_spec_starts_its_search_at_the_defaults_and_a_stored_one_at_random_as_in_the_first_release(
    tmp_path: Path,
) -> None:
    spec = load_spec(written(tmp_path))
    assert (spec.search.start, validate(RAW).search.start) == ("defaults", "defaults")
    assert (in_recipe(spec, FIRST).search.start, validate_stored(RAW).search.start) == ("random", "random")
    chosen = load_spec(written(tmp_path, search={"start": "random", "trials_per_method": 3}))
    assert (chosen.search.start, in_recipe(chosen, FIRST).search.start) == ("random", "random")
    assert load_spec(written(tmp_path, search={"trials_per_method": 3}), ["search.start=random"]).search.start == "random"


def test_a_recipe_that_the_file_names_stays(tmp_path: Path) -> None:
    first, newest = (load_spec(written(tmp_path, recipe=recipe)) for recipe in (FIRST, NEWEST))
    assert (first.training.gradient_clip, newest.training.gradient_clip) == (None, 5.0)
    assert in_recipe(newest, FIRST) is newest


def test_changing_the_recipe_and_back_gives_the_same_spec(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path))
    assert in_recipe(spec, FIRST) == validate_stored(RAW)
    assert in_recipe(in_recipe(spec, FIRST), NEWEST) == spec


def test_the_printed_spec_is_complete_and_reads_as_the_same_spec(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path))
    (tmp_path / "again.yaml").write_text(spec_to_yaml(spec))
    assert load_spec(tmp_path / "again.yaml") == spec
    assert validate(spec_to_dict(spec)) == spec


def test_a_teacher_with_given_weights_is_not_trained_and_gets_no_training_keys(tmp_path: Path) -> None:
    raw = RAW | {"teachers": {"given": {"model": "resnet8", "weights": "w.safetensors"}}}
    assert with_recipe(raw, NEWEST)[0]["teachers"] == raw["teachers"]


@pytest.mark.parametrize("broken", [5, [1], "x"])
def test_sections_of_a_wrong_type_are_left_to_the_schema(broken: Any) -> None:
    raw = RAW | {"training": broken, "teachers": {"big": broken}}
    filled, added = with_recipe(raw, NEWEST)
    assert (filled["training"], filled["teachers"]) == (broken, {"big": broken})
    assert added == {"recipe", "search.start"}


def test_what_was_added_can_be_taken_away_again() -> None:
    filled, added = with_recipe(RAW, NEWEST)
    sections = ("training", "teachers.big.train")
    assert added == {"recipe", "search.start", *(f"{section}.{key}" for section in sections for key in TODAY)}
    left = without(filled, added)
    assert left == RAW | {"search": {}, "training": {}, "teachers": {"big": {"model": "resnet8", "train": {}}}}


def test_an_unknown_recipe_is_reported_by_the_schema(tmp_path: Path) -> None:
    for recipe in (9, True, "2", [2], {"a": 2}):
        with pytest.raises(SpecError, match="recipe"):
            load_spec(written(tmp_path, recipe=recipe))


def test_a_stored_spec_without_a_recipe_is_of_the_first_release() -> None:
    assert (recipe_of({}), recipe_of({"recipe": 2})) == (FIRST, NEWEST)
    assert {**Training().model_dump(), **recipe_defaults(FIRST)} == Training().model_dump()
