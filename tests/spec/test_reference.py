"""Every key of a spec has a meaning, a real default and an example that a spec accepts; editors accept what Stillhouse does."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stillhouse.errors import UsageError
from stillhouse.spec.load import validate
from stillhouse.spec.recipes import NEWEST, with_recipe
from stillhouse.spec.reference import ENTRY, NAME, Entry, find, json_schema, reference
from stillhouse.spec.schema import SweepSpec

SMALLEST: dict[str, Any] = {"name": "x", "dataset": {"name": "digits"}, "students": [{"model": "mlp"}], "methods": ["scratch"]}
# What some keys need beside them.
COMPANIONS: dict[str, dict[str, Any]] = {
    "search.budget.gpu_hours": {"trial_resources": {"gpu": 1}},
    "training.sync_batchnorm": {"trial_resources": {"gpu": 2}},
    # A momentum without an optimizer is that of SGD.
    **{f"training.{key}": {"training": {"optimizer": "sgd"}} for key in ("momentum", "nesterov")},
}
SGD = {"train": {"optimizer": "sgd"}}
# Its default depends on the optimizer, and a rate without one is that of SGD.
BY_OPTIMIZER = "learning_rate"
ENTRIES = reference()
LEAVES = [entry for entry in ENTRIES if not entry.section]


def new(spec: Mapping[str, Any]) -> SweepSpec:
    return validate(with_recipe(spec, NEWEST)[0])


def without_value(key: str) -> dict[str, Any]:
    """The smallest spec that may have the key."""
    spec = copy.deepcopy(SMALLEST | COMPANIONS.get(key, {}))
    if key == "students[].from":
        return spec | {"teachers": {"big": {"model": "mlp"}}, "students": [{"name": "small", "model": "mlp"}]}
    own: dict[str, Any] = {"model": "mlp", **(SGD if key.endswith((".momentum", ".nesterov")) else {})}
    if key.endswith((".rename", ".head")):
        own["weights"] = "teacher.safetensors"
        spec["students"] = [copy.deepcopy(own)]
    return spec | {"teachers": {NAME: copy.deepcopy(own)}} if key.startswith("teachers") or key == "methods" else spec


def with_value(key: str, value: Any) -> dict[str, Any]:
    """The same with the key; options of a model stand beside its name."""
    spec = without_value(key)
    *parents, last = key.replace(ENTRY, ".0").split(".")
    place: Any = spec
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    if last == "from":
        del place["model"]
    if last == "options" and "model" in place:
        place.update(value)
    else:
        place[last] = value
    return spec


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.key)
def test_every_key_says_what_it_means(entry: Entry) -> None:
    assert len(entry.meaning.split()) >= 2, f"describe {entry.key} under `Attributes` of its section"
    assert entry.values


@pytest.mark.parametrize("entry", LEAVES, ids=lambda entry: entry.key)
def test_the_example_of_a_key_is_accepted_and_is_not_its_default(entry: Entry) -> None:
    assert entry.example != entry.default
    assert new(with_value(entry.key, entry.example)) != new(without_value(entry.key))


@pytest.mark.parametrize("entry", [each for each in LEAVES if not each.required and ENTRY not in each.key], ids=lambda e: e.key)
def test_a_key_at_its_default_is_as_if_it_were_left_out(entry: Entry) -> None:
    if entry.key.endswith(BY_OPTIMIZER):
        pytest.skip("its default depends on the optimizer")
    plain = without_value(entry.key)
    if entry.key == "methods":
        del plain["methods"]
    assert new(with_value(entry.key, entry.default)) == new(plain)


def test_a_required_key_cannot_be_left_out() -> None:
    required = [entry.key for entry in ENTRIES if entry.required and "." not in entry.key]
    assert required == ["name", "dataset", "students"]
    for key in required:
        with pytest.raises(UsageError, match=key):
            validate({name: value for name, value in SMALLEST.items() if name != key})


@pytest.mark.parametrize(
    ("asked", "first", "count"),
    [
        ("search.max_epochs", "search.max_epochs", 1),
        ("teachers.big.train.epochs", "teachers.NAME.train.epochs", 1),
        ("students[0].model", "students[].model", 1),
        ("students.model", "students[].model", 1),
        ("report", "report", 2),
    ],
)
def test_keys_are_found_as_people_write_them(asked: str, first: str, count: int) -> None:
    found = find(asked)
    assert found[0].key == first
    assert len(found) >= count


def test_an_unknown_key_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"no key 'search.max_epoch'; did you mean 'search.max_epochs'"):
        find("search.max_epoch")
    with pytest.raises(UsageError, match="did you mean 'search'"):
        find("serch")


SPECS = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_json_schema_accepts_the_shipped_specs(path: Path) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("entry", LEAVES, ids=lambda entry: entry.key)
def test_the_json_schema_accepts_every_example(entry: Entry) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(with_value(entry.key, entry.example))


@pytest.mark.parametrize(
    "change",
    [
        {"serch": {}},
        {"search": {"max_epochs": 0}},
        {"search": {"algorithm": "best"}},
        {"students": []},
        {"training": {"batchsize": 2}},
        {"views": {"count": "many"}},
    ],
)
def test_the_json_schema_refuses_what_a_spec_cannot_have(change: dict[str, Any]) -> None:
    schema = jsonschema.Draft202012Validator(json_schema())
    assert not schema.is_valid(SMALLEST | change)
    with pytest.raises(UsageError):
        validate(SMALLEST | change)


def test_the_json_schema_is_one_and_describes_every_section() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"].keys() == SweepSpec.model_fields.keys()
    undescribed = [name for name, section in schema["$defs"].items() if not section.get("description")]
    assert not undescribed
