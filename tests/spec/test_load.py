"""Reading a spec: YAML becomes validated types, or all problems at once."""

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import SpecError
from stillhouse.spec.load import (
    draft_of,
    load_spec,
    resolve_paths,
    spec_to_dict,
    spec_to_yaml,
    validate,
)
from stillhouse.spec.priors import Choice, Integers, LogUniform, Uniform
from stillhouse.spec.yaml_text import parse_yaml

DESIGN = """
name: fashion-tradeoff
dataset: {name: fashion_mnist, root: /data, validation: 5000}
views: {policy: [crop, {cutout: {size: 8}}], count: 8}
teachers:
  resnet56: {model: resnet56, train: {epochs: 30}}
  given: {model: resnet20, width: 2, weights: "torchvision:A_Weights.B"}
students: [mlp, lenet, {model: resnet8, width: {choice: [0.25, 0.5, 1.0]}}, {model: mlp, name: wide, hidden: [64, 64]}]
methods:
  kd: {temperature: {uniform: [1, 10]}, kd_weight: 0.9}
  attention_transfer: {}
  fitnets: defaults
search: {algorithm: random, trials_per_method: 8, scheduler: asha, max_epochs: 20, confirm_seeds: 3}
objectives: {validation_accuracy: max, parameters: min}
trial_resources: {cpu: 1, gpu: 0.25}
tracking: {uri: null}
"""
SMALL: dict[str, Any] = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": ["scratch"]}


def problems_of(text: str) -> dict[str, str]:
    """The messages by key."""
    raw, problems = parse_yaml(text)
    return {problem.key: problem.message for problem in draft_of(raw, problems).problems}


def problems_with(**sections: Any) -> dict[str, str]:
    return {problem.key: problem.message for problem in draft_of({**SMALL, **sections}).problems}


def write(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def test_a_full_spec_is_validated(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, DESIGN))
    assert spec.dataset.validation == 5000
    assert spec.teachers["resnet56"].train.epochs == 30
    assert spec.teachers["given"].options == {"width": 2}
    assert [student.name for student in spec.students] == ["mlp", "lenet", "resnet8", "wide"]
    assert spec.students[2].options == {"width": Choice((0.25, 0.5, 1.0))}
    assert spec.methods == {
        "kd": {"temperature": Uniform(1, 10), "kd_weight": 0.9},
        "attention_transfer": {},
        "fitnets": "defaults",
    }
    assert spec.trial_resources.gpu == 0.25


def test_only_name_dataset_students_and_methods_are_required() -> None:
    spec = validate(SMALL)
    assert spec.search.trials_per_method == 8
    assert spec.search.max_epochs == 20
    assert spec.search.scheduler == "none"
    assert spec.views.count == 1
    assert spec.objectives == {"validation_accuracy": "max", "parameters": "min"}


def test_a_printed_spec_reads_back_equal(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, DESIGN))
    assert load_spec(write(tmp_path, spec_to_yaml(spec))) == spec
    assert validate(yaml.safe_load(yaml.safe_dump(spec_to_dict(spec)))) == spec


def test_a_section_without_content_keeps_its_defaults() -> None:
    assert validate({**SMALL, "tracking": None, "views": None}) == validate(SMALL)


@pytest.mark.parametrize(
    ("text", "prior"),
    [
        ("{uniform: [1, 10]}", Uniform(1, 10)),
        ("{loguniform: [1e-3, 10]}", LogUniform(1e-3, 10)),
        ("{integers: [1, 3]}", Integers(1, 3)),
        ("{choice: [a, 2, null, [1, 2]]}", Choice(("a", 2, None, [1, 2]))),
    ],
)
def test_priors_are_read_from_one_key_mappings(text: str, prior: object) -> None:
    raw, _ = parse_yaml(f"x: {text}")
    spec = validate({**SMALL, "methods": {"kd": {"temperature": raw["x"]}}})
    assert spec.methods == {"kd": {"temperature": prior}}


@pytest.mark.parametrize(
    ("prior", "key", "message"),
    [
        ({"uniform": [3, 1]}, ".uniform", "must be [low, high] with low < high, got [3, 1]"),
        ({"uniform": [1, "x"]}, ".uniform", "must be two numbers [low, high], got [1, 'x']"),
        ({"loguniform": [0, 1]}, ".loguniform", "must be [low, high] with 0 < low < high, got [0, 1]"),
        ({"integers": [1, 2.5]}, ".integers", "must be two whole numbers [low, high], got [1, 2.5]"),
        ({"choice": []}, ".choice", "must list at least one value, got []"),
        ({"choice": 3}, ".choice", "must be a list, got 3"),
    ],
)
def test_a_wrong_prior_is_reported_with_its_rule(prior: dict[str, Any], key: str, message: str) -> None:
    assert problems_with(methods={"kd": {"temperature": prior}}) == {f"methods.kd.temperature{key}": message}
    student = {"model": "mlp", "width": prior}
    assert problems_with(students=["lenet", student]) == {f"students[1].width{key}": message}


def test_a_mapping_that_is_no_prior_is_a_problem_that_lists_the_four_priors() -> None:
    (message,) = problems_with(methods={"kd": {"temperature": {"unifrom": [1, 2]}}}).values()
    assert "{uniform: [low, high]}" in message
    assert "got {unifrom: [1, 2]}" in message


def test_all_problems_are_reported_at_once_each_under_the_users_key() -> None:
    found = problems_of("""
name: ../x
dataset: {nam: digits, validation: 1.5}
teachers:
  c: {train: {epoch: 1, optimizer: adamm}}
students: [mlp, {model: 1, width: {choice: []}}]
methods: {kd: 3}
serch: 1
search: {algorithm: rando, trials_per_method: "8", max_epochs: 2.5, seed: true, confirm_seeds: -1}
training: {learning_rate: .nan}
objectives: {accuracy: max, parameters: max, test_accuracy: max}
trial_resources: 3
""")
    assert set(found) == {
        "name",
        "dataset.name",
        "dataset.nam",
        "dataset.validation",
        "teachers.c.model",
        "teachers.c.train.epoch",
        "teachers.c.train.optimizer",
        "students[1].model",
        "students[1].width.choice",
        "methods.kd",
        "serch",
        "search.algorithm",
        "search.trials_per_method",
        "search.max_epochs",
        "search.seed",
        "search.confirm_seeds",
        "training.learning_rate",
        "objectives.accuracy",
        "objectives.parameters",
        "objectives.test_accuracy",
        "trial_resources",
    }
    assert found["serch"].startswith("is not a key of a spec; did you mean 'search'?")
    assert found["search.algorithm"] == "must be one of random, grid, tpe, nsga2, got 'rando'; did you mean 'random'?"
    assert found["search.trials_per_method"] == "must be a whole number, got '8'"
    assert found["search.seed"] == "must be a whole number, got true"
    assert found["search.confirm_seeds"] == "must be >= 0, got -1"
    assert found["teachers.c.train.epoch"].startswith("is not a key of teachers.c.train; did you mean 'epochs'?")
    assert found["trial_resources"] == "must be a mapping, got 3"


def test_every_missing_section_is_reported_with_an_example() -> None:
    found = problems_of("views: {}")
    assert set(found) == {"name", "dataset", "students", "methods"}
    assert found["students"] == "is required; list the students, such as students: [mlp, lenet]"


def test_students_with_the_same_name_are_a_problem() -> None:
    found = problems_with(students=["mlp", {"model": "mlp", "width": 2.0}])
    assert found == {"students[1].name": "must be unique, 'mlp' is the name of students[0] too; give the entry a name:"}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"training": {"mixed_precision": "float16"}}, "training.mixed_precision"),
        ({"training": {"nesterov": True, "momentum": 0}}, "training.nesterov"),
        ({"training": {"warmup_epochs": 20}}, "training.warmup_epochs"),
        ({"search": {"scheduler": "asha", "grace_epochs": 21}}, "search.grace_epochs"),
        ({"trial_resources": {"gpu": 1.5}}, "trial_resources.gpu"),
        ({"methods": None}, "methods"),
        ({"objectives": {}}, "objectives"),
    ],
)
def test_impossible_combinations_are_problems(sections: dict[str, Any], key: str) -> None:
    assert list(problems_with(**sections)) == [key]


def test_an_unknown_key_without_a_value_is_an_error_and_a_known_one_means_its_default() -> None:
    with pytest.raises(SpecError, match=r"serch is not a key of a spec; did you mean 'search'\?"):
        validate({**SMALL, "serch": None})
    assert validate({**SMALL, "search": None}) == validate(SMALL)


def test_an_override_of_an_unknown_key_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"search.trials_per_metod is not a key of search; did you mean 'trials_per_method'\?"):
        load_spec(write(tmp_path, DESIGN), ["search.trials_per_metod=4"])


def test_paths_are_relative_to_the_folder_of_the_spec_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE", "/store")
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "specs").mkdir()
    path = tmp_path / "specs" / "spec.yaml"
    path.write_text(
        "name: s\ndataset: {name: mnist, root: ../data}\nstudents: [mlp]\nmethod_paths: [mine, ~/theirs]\nteachers:\n"
        "  a: {model: mlp, weights: $STORE/a.safetensors}\n  b: {model: mlp, weights: 'torchvision:X.Y'}\n"
    )
    spec = load_spec(path)
    assert spec.dataset.root == str(tmp_path / "data")
    assert spec.method_paths == (str(tmp_path / "specs" / "mine"), "/home/me/theirs")
    assert spec.teachers["a"].weights == "/store/a.safetensors"
    assert spec.teachers["b"].weights == "torchvision:X.Y"


def test_resolving_paths_twice_changes_nothing() -> None:
    once = resolve_paths({**SMALL, "dataset": {"name": "mnist", "root": "data"}}, Path("/a"))
    assert resolve_paths(once, Path("/b")) == once


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / name)


def test_bytes_that_are_not_text_are_one_problem(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SpecError, match="is not UTF-8 text"):
        load_spec(tmp_path / "spec.yaml")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:hush@host/path", "https://***@host/path"),
        ("postgresql://me:hush@host/db?sslmode=on", "postgresql://***@host/db?sslmode=on"),
        ("https://host/?token=hush&x=1", "https://host/?token=***&x=1"),
        ("https://host:5000", "https://host:5000"),
    ],
)
def test_passwords_are_masked_in_what_is_printed(uri: str, shown: str) -> None:
    spec = validate({**SMALL, "tracking": {"uri": uri}})
    assert spec_to_dict(spec)["tracking"]["uri"] == shown
    assert spec_to_dict(spec, secrets=True)["tracking"]["uri"] == uri


def test_passwords_are_masked_in_problems() -> None:
    (message,) = problems_with(tracking=["https://me:hush@host"]).values()
    assert "hush" not in message


_STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2.5, 10**30, -(10**400), float("nan"), float("inf"), "", "x", "\ud800", "\x00", "a.b[0]",
    "[key]", "options", [], {}, [[]], {"choice": []}, {"uniform": [1]}, {"uniform": [2, 1]}, {"a": {"b": [None]}}, {"": ""},
    {"model": None}, "a\nb", {"a\nb": 1},
    (1, 2), b"x", {1: 2}, object(), "défaults", ["mlp"] * 3, {"crop": None}, "http://u:p@h", {"x": float("nan")},
]  # fmt: skip


def _mutate(value: Any, draw: random.Random) -> Any:
    """`value` with one random place replaced, removed or renamed."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        copy = dict(value)
        action = draw.random()
        if action < 0.1:
            del copy[key]
        elif action < 0.2:
            copy[draw.choice([1, None, "", f"{key}s", str(key)[:-1], "options", "\ud800", "a.b"])] = copy.pop(key)
        else:
            copy[key] = _mutate(value[key], draw)
        return copy
    if isinstance(value, list) and value and draw.random() < 0.85:
        place = draw.randrange(len(value))
        return [*value[:place], _mutate(value[place], draw), *value[place + draw.choice([0, 1, 1, 1]) :]]
    return draw.choice(_STRANGE)


def test_a_mutated_spec_never_raises_anything_but_spec_error() -> None:
    short, _ = parse_yaml(DESIGN)
    whole = spec_to_dict(validate(short))
    for seed in range(1000):
        draw = random.Random(seed)
        spec: Any = draw.choice([whole, short])
        for _ in range(draw.randint(1, 4)):
            spec = _mutate(spec, draw)
        if not isinstance(spec, dict):
            continue
        draft = draft_of(spec)
        assert all("\n" not in str(problem) for problem in draft.problems), seed
        if draft.problems:
            with pytest.raises(SpecError):
                validate(spec)
        else:
            assert draft.spec is not None
            assert validate(spec_to_dict(draft.spec, secrets=True)) == draft.spec, seed


def test_mutated_text_never_raises_anything_but_spec_error(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    for seed in range(200):
        draw = random.Random(seed)
        letters = list(DESIGN)
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(letters))
            letters[place : place + draw.randint(0, 3)] = draw.choice(
                ["{", "}", "[", ":", "\n", "&a ", "*a ", "!x ", "'", "\t", "%", "\x85", "1"]
            )
        path.write_text("".join(letters))
        with contextlib.suppress(SpecError):
            load_spec(path, draw.choice([[], ["search.seed=1"], ["name=[", "=", "a"], ["students[0].width=0.5"]]))


def test_limits_are_numbers_with_multiples_and_survive_a_round_trip() -> None:
    limits = {"parameters": "100k", "macs": "5M", "latency_ms": 2, "size_bytes": "1MB"}
    spec = validate({**SMALL, "search": {"limits": limits, "budget": {"hours": 2, "epochs": 100}}})
    assert spec.search.limits == {"parameters": 1e5, "macs": 5e6, "latency_ms": 2.0, "size_bytes": 1e6}
    assert spec.search.budget.hours == 2
    assert validate(spec_to_dict(spec)) == spec


@pytest.mark.parametrize(
    ("search", "key"),
    [
        ({"limits": {"paramters": 5}}, "search.limits.paramters"),
        ({"limits": {"macs": "many"}}, "search.limits.macs"),
        ({"limits": {"macs": -1}}, "search.limits.macs"),
        ({"limits": [5]}, "search.limits"),
        ({"budget": {"hours": 0}}, "search.budget.hours"),
        ({"budget": {"days": 1}}, "search.budget.days"),
        ({"budget": {"gpu_hours": 1}}, "search.budget.gpu_hours"),
        ({"algorithm": "bohb"}, "search.algorithm"),
        ({"scheduler": "median", "grace_epochs": 30}, "search.grace_epochs"),
        ({"startup_trials": 1}, "search.startup_trials"),
    ],
)
def test_an_impossible_search_is_a_problem_of_its_key(search: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate({**SMALL, "search": search})
    assert [problem.key for problem in caught.value.problems] == [key]
