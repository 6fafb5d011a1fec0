"""Every key of a spec: its values, its default in a new spec, its meaning; and the spec as a JSON Schema for editors.

Meanings are the `Attributes` of the sections' docstrings, so that each is written once, beside the key. A Python that strips
docstrings shows keys without meanings.
"""

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stillhouse.errors import UsageError, did_you_mean
from stillhouse.spec.recipes import NEWEST, with_recipe
from stillhouse.spec.schema import SweepSpec
from stillhouse.spec.values import PRIORS

NAME, ENTRY = "NAME", "[]"
"""The parts of a key that stand for a user's own name and for an entry of a list: `teachers.NAME.model`, `students[].model`."""

_RULES = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
# What a validator of our own accepts cannot be read off its type.
_VALUES = {
    "dataset.validation": "number of samples, or share in (0, 1); 0 for none",
    "dataset.options": "mapping",
    "views.policy": "list of names or {name: {option: value}}",
    "teachers.NAME.normalization": "dataset, imagenet, 0..1, -1..1, 0..255, or {mean: [...], std: [...]}",
    "teachers.NAME.options": "beside `model`",
    "students[].options": "beside `model`; values or priors",
    "students[].compress": "list of {operator: {option: value or prior}}",
    "methods": "list of names, or mapping of names to hyper-parameters, {} or defaults",
    "knowledge.max_bytes": "size such as 20GB",
    "search.limits": "mapping of sizes to numbers such as 100k",
    "report.budgets": "list of texts such as parameters=100k",
    "objectives": "mapping of columns to max or min",
    "method_paths": "list of folders",
    "controls": "list of names of controls",
}


# A key that a section takes over from another one and that has one value there.
_FIXED = {"teachers.NAME.train.sync_batchnorm"}
# One value for each key that is neither a choice nor true or false, by the key or its last part.
_EXAMPLES: dict[str, Any] = {
    "name": "fashion",
    "dataset.name": "fashion_mnist",
    "students[].name": "small",
    "task": "angles:Angle",
    "root": "~/data",
    "validation": 5000,
    "size": 64,
    "dataset.options": {"limit": 5000},
    "policy": ["crop", {"cutout": {"size": 4}}],
    "count": 8,
    "teachers.NAME.model": "resnet56",
    "students[].model": "resnet8",
    "teachers.NAME.options": {"width": 0.5},
    "students[].from": "big",
    "students[].compress": [{"OPERATOR": {"ratio": {"choice": [0.3, 0.5]}}}],
    "students[].options": {"width": {"choice": [0.5, 1.0]}},
    "weights": "teacher.safetensors",
    "rename": {"^linear": "fc"},
    "head": "new",
    "normalization": "imagenet",
    "num_classes": 10,
    "batch_size": 256,
    "learning_rate": 0.1,
    "momentum": 0.95,
    "adam_beta1": 0.5,
    "weight_decay": 0.0001,
    "milestones": [0.5, 0.75],
    "gamma": 0.2,
    "warmup_epochs": 1,
    "gradient_clip": 1.0,
    "micro_batch": 32,
    "epochs": 60,
    "seed": 1,
    "custom": {"teacher_node": 1},
    "labels": {"pool": "teacher"},
    "cpu": 2,
    "gpu": 0.25,
    "replicas": 2,
    "workers": 2,
    "packed": 4,
    "methods": {"METHOD": {"weight": {"uniform": [0.1, 1]}}},
    "trials_per_method": 16,
    "max_epochs": 60,
    "confirm_seeds": 3,
    "grace_epochs": 5,
    "reduction_factor": 4,
    "startup_trials": 12,
    "trials_ahead": 2,
    "limits": {"parameters": "100k"},
    "trials": 100,
    "hours": 8,
    "gpu_hours": 24,
    "trial_hours": 40,
    "objectives": {"validation_accuracy": "max", "latency_ms": "min"},
    "max_concurrent_trials": 4,
    "ways": {"logits": "inline"},
    "top_k": 16,
    "tail_draws": 8,
    "max_bytes": "20GB",
    "uri": "http://127.0.0.1:5000",
    "experiment": "compression",
    "budgets": ["parameters=100k"],
    "method_paths": ["methods"],
    "controls": ["CONTROL"],
    "recipe": 1,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One key of a spec.

    Attributes:
        key: dotted; `NAME` stands for a name that the user chooses, `[]` for each entry of a list.
        values: what it may be, in words.
        default: in a new spec, as JSON data; None also means null.
        required: whether it has none.
        meaning: what it does, in a sentence or more.
        example: a value other than the default, as JSON data; None for a section.
        section: whether it contains other keys.
    """

    key: str
    values: str
    default: Any
    required: bool
    meaning: str
    example: Any
    section: bool


def reference() -> list[Entry]:
    """All keys, in the order of the schema."""
    return list(_entries(SweepSpec, "", _defaults()))


def find(key: str) -> list[Entry]:
    """The key and those below it. Names and numbers of a spec are understood: `teachers.big.train.epochs`.

    Raises:
        UsageError: there is no such key.
    """
    known = reference()
    wanted = _general(key, [each.key for each in known])
    found = [each for each in known if each.key == wanted or each.key.startswith((f"{wanted}.", f"{wanted}{ENTRY}"))]
    if not found:
        raise UsageError(f"a spec has no key '{key}'{did_you_mean(key, _near(wanted, [each.key for each in known]))}")
    return found


def _near(key: str, known: list[str]) -> list[str]:
    """The keys of the section that the key names, or else those of the whole spec."""
    section = key.rpartition(".")[0]
    inside = [each for each in known if each.rpartition(".")[0].removesuffix(ENTRY) == section.removesuffix(ENTRY)]
    return inside or [each for each in known if "." not in each]


def json_schema() -> dict[str, Any]:
    """The spec as a JSON Schema, for editors that complete and check YAML files."""
    schema = SweepSpec.model_json_schema(mode="validation")
    meanings = {each.key: each for each in reference()}
    definitions = schema["$defs"]
    for prefix, model in _sections():
        target = schema if model is SweepSpec else definitions[model.__name__]
        target["description"] = _summary(model)
        for name, properties in target["properties"].items():
            entry = meanings.get(f"{prefix}{name}")
            if entry is not None and "$ref" not in properties:
                properties["description"] = entry.meaning
    # Options of a model stand beside its name, and a bare name is a model.
    for name in ("StudentSpec", "TeacherSpec"):
        definitions[name]["additionalProperties"] = True
        definitions[name]["properties"].pop("options", None)
    students, teachers = schema["properties"]["students"], schema["properties"]["teachers"]
    students["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/StudentSpec"}]}
    teachers["additionalProperties"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/TeacherSpec"}]}
    prior = {"type": "object", "properties": {kind: {"type": "array"} for kind in PRIORS}}
    settings = {"anyOf": [{"const": "defaults"}, {"type": ["object", "null"], "additionalProperties": {"anyOf": [prior, {}]}}]}
    schema["properties"]["methods"] = {
        "anyOf": [
            {"type": "array", "items": {"type": "string"}},
            {"type": "object", "additionalProperties": settings},
            {"type": "null"},
        ],
        "description": meanings["methods"].meaning,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Stillhouse sweep"}


def _defaults() -> dict[str, Any]:
    """The smallest new spec, completed, as plain data: where the defaults of a new spec are read."""
    smallest = {"name": "x", "dataset": {"name": "digits"}, "students": [{"model": "mlp", "name": "mlp"}]}
    filled, _ = with_recipe({**smallest, "teachers": {NAME: {"model": "mlp"}}}, NEWEST)
    return SweepSpec.model_validate(filled).model_dump(mode="json")


def _entries(model: type[BaseModel], prefix: str, defaults: Mapping[str, Any]) -> Iterator[Entry]:
    meanings = attribute_docs(model)
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if key in _FIXED:
            continue
        inner, place = _section_of(field.annotation)
        default = defaults.get(name)
        yield Entry(
            key=key,
            values=_VALUES.get(key) or (_kind(place) if inner else _values(field)),
            default=None if inner is not None or field.is_required() else _default(field, default, prefix),
            required=field.is_required(),
            meaning=meanings.get(name, ""),
            example=None if inner is not None else _example(key, field, default),
            section=inner is not None,
        )
        if inner is not None:
            below = default if place == "" else (default or {}).get(NAME, {}) if place == f".{NAME}" else (default or [{}])[0]
            yield from _entries(inner, f"{key}{place}.", below or {})


def _default(field: FieldInfo, default: Any, prefix: str) -> Any:
    """The value in the smallest new spec, or, for an entry of a list, whose keys depend on each other, that of the schema."""
    return field.get_default(call_default_factory=True) if prefix.endswith(f"{ENTRY}.") else default


def _example(key: str, field: FieldInfo, default: Any) -> Any:
    if field.annotation is bool:
        return not default
    if get_origin(field.annotation) is Literal and key not in _EXAMPLES:
        return next(each for each in get_args(field.annotation) if each != default)
    return _EXAMPLES[key] if key in _EXAMPLES else _EXAMPLES[key.rpartition(".")[2]]


def _kind(place: str) -> str:
    return {"": "section", f".{NAME}": "mapping of names to sections", ENTRY: "list of names or sections"}[place]


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The section that a type contains, and how its keys are reached: directly, by a name, or in a list."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if inspect.isclass(annotation) and origin is None and issubclass(annotation, BaseModel):
        return annotation, ""
    if origin is Annotated:
        return _section_of(arguments[0])
    if origin is dict and len(arguments) == 2:
        inner, _ = _section_of(arguments[1])
        return (inner, f".{NAME}") if inner else (None, "")
    if origin in (tuple, list) and arguments:
        inner, _ = _section_of(arguments[0])
        return (inner, ENTRY) if inner else (None, "")
    return None, ""


def _values(field: FieldInfo) -> str:
    rules = " and ".join(
        f"{sign} {getattr(each, name):g}"
        for each in field.metadata
        for name, sign in _RULES.items()
        if getattr(each, name, None) is not None
    )
    return " ".join(filter(None, (_type_words(field.annotation), rules)))


def _type_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        rules = " and ".join(
            f"{sign} {getattr(rule, name):g}"
            for each in arguments[1:]
            for rule in [each, *getattr(each, "metadata", [])]
            for name, sign in _RULES.items()
            if getattr(rule, name, None) is not None
        )
        return " ".join(filter(None, (_type_words(arguments[0]), rules)))
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if each is type(None) else _type_words(each) for each in arguments)
    if origin in (tuple, list):
        return f"list, each {_type_words(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {_type_words(arguments[1])}"
    return _TYPES.get(annotation, "any value")


def attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """The meanings in the `Attributes` of a class's docstring and of those that it inherits from, by attribute."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        lines = inspect.cleandoc(kind.__dict__.get("__doc__") or "").splitlines()
        if "Attributes:" not in lines:
            continue
        name = ""
        for line in lines[lines.index("Attributes:") + 1 :]:
            if line and not line.startswith(" "):
                break
            if match := re.match(r" {4}(\w+): (.*)", line):
                name, text = match.groups()
                found[name] = text
            elif name and line.strip():
                found[name] += f" {line.strip()}"
    return {name: text[:1].upper() + text[1:].rstrip(".") + "." for name, text in found.items()}


def _summary(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0]


def _sections() -> list[tuple[str, type[BaseModel]]]:
    """Every section with the beginning of its keys."""

    def below(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
        yield prefix, model
        for name, field in model.model_fields.items():
            inner, place = _section_of(field.annotation)
            if inner is not None:
                yield from below(inner, f"{prefix}{name}{place}.")

    return list(below(SweepSpec, ""))


def _general(key: str, known: list[str]) -> str:
    """`teachers.big.train` as `teachers.NAME.train`, `students[0].model` and `students.model` as `students[].model`."""
    key = re.sub(r"\[\d*\]", ENTRY, key.strip("."))
    if key in known:
        return key
    parts = key.split(".")
    for place in range(len(parts)):
        for candidate in (
            ".".join([*parts[:place], NAME, *parts[place + 1 :]]),
            ".".join([*parts[:place], f"{parts[place]}{ENTRY}", *parts[place + 1 :]]),
        ):
            if candidate in known or any(each.startswith(f"{candidate}.") for each in known):
                return candidate
    return key
