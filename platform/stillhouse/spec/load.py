"""From YAML text to a validated spec and back. All problems are reported at once, in one `SpecError`.

Numbers, booleans and null are YAML 1.2's: `1e-3` is a number and `off` is a word. A key must not appear twice.
Relative paths (`dataset.root`, `teachers.*.weights`, `method_paths`) are relative to the folder of the spec file; `~` and
`$NAME` are expanded.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from stillhouse.errors import Problem, SpecError, first_line
from stillhouse.spec.combinations import combination_problems
from stillhouse.spec.display import show
from stillhouse.spec.error_messages import key_of, to_problems
from stillhouse.spec.masking import mask_data
from stillhouse.spec.priors import Prior
from stillhouse.spec.schema import StudentSpec, SweepSpec, TeacherSpec

_MAX_NODES = 200_000
_LARGEST_INTEGER = 2**53  # JSON readers that use float64 change larger numbers
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_RESOLVERS = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
)

Place = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(_pattern), _first)


@dataclass(frozen=True)
class Draft:
    """The valid part of a spec that may have problems.

    Attributes:
        spec: the valid part, with entries that have problems left out; None when too little is left.
        broken: sections and entries (`search`, `teachers`, `teachers.big`) that have problems.
        student_places: the position of each student of `spec` in the user's list.
    """

    spec: SweepSpec | None
    problems: tuple[Problem, ...] = ()
    broken: frozenset[str] = frozenset()
    student_places: tuple[int, ...] = ()


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """The spec in the YAML file `path`, with `KEY=VALUE` overrides.

    Only the spec itself is checked here; `stillhouse.sweep.planning.spec_check` also knows the models, methods and data.

    Raises:
        SpecError: with every problem.
    """
    draft = read_draft(path, overrides)
    if draft.problems or draft.spec is None:
        raise SpecError(draft.problems)
    return draft.spec


def validate(raw: Mapping[str, Any]) -> SweepSpec:
    """The spec that a plain mapping describes; relative paths stay as they are.

    Raises:
        SpecError: with every problem.
    """
    draft = draft_of(raw)
    if draft.problems or draft.spec is None:
        raise SpecError(draft.problems)
    return draft.spec


def read_draft(path: str | Path, overrides: Sequence[str] = ()) -> Draft:
    """The valid part of a spec file, and all problems of the rest.

    Raises:
        SpecError: the file cannot be read, or an override names a key that cannot exist.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError([Problem("", f"{path} is not UTF-8 text: byte {error.start} cannot be decoded")]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError([Problem("", f"the spec {path} cannot be read: {reason}; name a YAML file")]) from error
    raw, problems = parse_yaml(text, str(path))
    try:
        raw = apply_overrides(raw, overrides)
    except SpecError as error:
        problems += error.problems
    return draft_of(resolve_paths(raw, path.absolute().parent), problems)


def parse_yaml(text: str, source: str = "the spec") -> tuple[dict[str, Any], list[Problem]]:
    """The mapping in a YAML text, and the problems of its keys and tags.

    Raises:
        SpecError: the text is not YAML, is empty, or is not a mapping.
    """
    value, problems = _parse(text, source)
    if value is None and not problems:
        raise SpecError([Problem("", f"{source} is empty; a spec needs at least name, dataset and students")])
    if not isinstance(value, dict):
        raise SpecError([*problems, Problem("", f"{source} must be a mapping such as name: my-sweep, got {show(value)}")])
    return value, problems


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`raw` with `KEY=VALUE` overrides such as `search.max_epochs=4` or `students[0].width=0.5`; values are YAML.

    A key that does not exist is set as well, so that validation reports it like any other.

    Raises:
        SpecError: with every override whose key cannot exist.
    """
    changed: dict[str, Any] = _copy(raw)
    problems: list[Problem] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip()
        place = _parse_key(key)
        if not separator or place is None:
            problems.append(Problem("--set", f"must be KEY=VALUE such as search.max_epochs=4, got {show(override)}"))
            continue
        try:
            value = _parse_value(text, key)
            _put(changed, place, value)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return changed


def resolve_paths(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`raw` with its paths absolute: relative ones start at `folder`, `~` and `$NAME` are expanded."""
    changed: dict[str, Any] = _copy(raw)

    def resolve(container: Any, key: Any) -> None:
        text = container[key]
        if isinstance(text, str) and text and not text.startswith(("torchvision:", "mlflow:")):
            container[key] = os.path.normpath(folder / os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111

    if isinstance(dataset := changed.get("dataset"), dict) and "root" in dataset:
        resolve(dataset, "root")
    if isinstance(teachers := changed.get("teachers"), dict):
        for teacher in teachers.values():
            if isinstance(teacher, dict) and "weights" in teacher:
                resolve(teacher, "weights")
    if isinstance(paths := changed.get("method_paths"), list):
        for number in range(len(paths)):
            resolve(paths, number)
    return changed


def draft_of(raw: Mapping[str, Any], problems: Sequence[Problem] = ()) -> Draft:
    """Validates `raw` section by section, so that one problem does not hide another; `problems` were found before."""
    found = list(problems)
    plain = _plain(raw, (), found, [0], ())
    assert isinstance(plain, dict)
    # A section whose keys are all commented out is null.
    plain = {key: value for key, value in plain.items() if value is not None}
    broken = {_entry(_parse_key(problem.key) or ()) for problem in found}
    indices: Sequence[int] = ()
    if isinstance(plain.get("students"), list):
        indices = range(len(plain["students"]))
    spec: SweepSpec | None = None
    try:
        spec = _model(plain)
    except ValidationError as error:
        details = error.errors(include_url=False)
        found += to_problems(details)
        places = [tuple(detail["loc"]) for detail in details]
        broken |= {_entry(place) for place in places}
        spec, indices = _valid_part(plain, places, indices)
    broken_keys = frozenset(key_of(place) for place in broken if place)
    if spec is not None:
        found += combination_problems(spec, broken=broken_keys, student_places=indices)
    elif not found:
        found.append(Problem("", "the spec cannot be read"))
    return Draft(spec, tuple(dict.fromkeys(found)), broken_keys, tuple(indices))


def spec_to_dict(spec: SweepSpec, *, secrets: bool = False) -> dict[str, Any]:
    """The spec as plain data in the user's own layout, complete with defaults; `validate` returns an equal spec.

    Secrets become `***` unless `secrets`.
    """
    plain = {key: _unparse(getattr(spec, key)) for key in type(spec).model_fields}
    return plain if secrets else mask_data(plain)


def spec_to_yaml(spec: SweepSpec, *, secrets: bool = False) -> str:
    """`spec_to_dict` as YAML text that `load_spec` reads."""
    return to_yaml(spec_to_dict(spec, secrets=secrets))


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Plain data as the YAML that `parse_yaml` reads back unchanged."""
    return yaml.dump(dict(plain), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _model(plain: Mapping[str, Any]) -> SweepSpec:
    fields = dict(plain)
    if isinstance(students := plain.get("students"), list):
        fields["students"] = [StudentSpec.from_entry(entry) for entry in students]
    if isinstance(teachers := plain.get("teachers"), dict):
        fields["teachers"] = {name: TeacherSpec.from_entry(entry) for name, entry in teachers.items()}
    # Strict JSON: no "5" or true for a number, and still lists for tuples and 1 for 1.0.
    return SweepSpec.model_validate_json(json.dumps(fields, allow_nan=False), strict=True)


def _entry(place: Place) -> Place:
    """The smallest part of the spec that is left out when `place` has a problem: an entry, or a key of a section."""
    return place[:2]


def _valid_part(
    plain: dict[str, Any], places: Sequence[Place], indices: Sequence[int]
) -> tuple[SweepSpec | None, Sequence[int]]:
    """`plain` without the entries at `places`, with substitutes for what every spec must have."""
    dropped = {_entry(place) for place in places}
    left: dict[str, Any] = {}
    for section, content in plain.items():
        if (section,) in dropped:
            continue
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if (section, key) not in dropped}
        elif isinstance(content, list):
            content = [value for number, value in enumerate(content) if (section, number) not in dropped]
        left[section] = content
    kept = [number for number in indices if ("students", number) not in dropped]
    if ("students",) in dropped or not left.get("students"):
        left["students"], kept = ["none"], []
    left.setdefault("name", "unnamed")
    if not isinstance(left.get("dataset"), dict) or "name" not in left["dataset"]:
        left["dataset"] = {"name": "unnamed"}
    try:
        spec = _model(left)
    except ValidationError:
        return None, ()
    return (spec if kept else spec.model_copy(update={"students": ()})), kept


def _clean(node: yaml.Node, place: Place, problems: list[Problem], seen: list[int], above: tuple[yaml.Node, ...]) -> None:
    """Reports keys that appear twice or are not words, and tags that are not plain data; removes them from the tree."""
    _count(seen)
    if node in above:
        raise yaml.YAMLError("it contains itself")
    above = (*above, node)
    if node.tag not in _PLAIN_TAGS:
        problems.append(Problem(key_of(place), f"has the tag {node.tag.replace(_TAG, '!!')}; write plain values"))
        node.tag, node.value = f"{_TAG}null", ""
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError(f"{key_of(place) or 'it'} has a tag that is not plain data")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _clean(item, (*place, number), problems, seen, above)
    elif isinstance(node, yaml.MappingNode):
        kept = []
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{_TAG}merge":
                _clean(value, place, problems, seen, above)
            elif key.tag != f"{_TAG}str" or not isinstance(key, yaml.ScalarNode):
                text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                problems.append(
                    Problem(key_of(place), f"has the key {text or 'null'} in line {line}, which is not a word; quote it")
                )
                continue
            elif key.value in lines:
                problems.append(
                    Problem(key_of((*place, key.value)), f"appears twice, in lines {lines[key.value]} and {line}; remove one")
                )
                continue
            else:
                lines[key.value] = line
                _clean(value, (*place, key.value), problems, seen, above)
            kept.append((key, value))
        node.value = kept


def _plain(value: Any, place: Place, problems: list[Problem], seen: list[int], above: tuple[int, ...]) -> Any:
    """A copy of `value` that JSON can represent; anything else is reported and becomes null."""
    _count(seen)
    if isinstance(value, Mapping | list | tuple):
        if id(value) in above:
            problems.append(Problem(key_of(place), "contains itself"))
            return None
        above = (*above, id(value))
    if isinstance(value, Prior):
        return value.to_json()
    if isinstance(value, BaseModel):
        return _unparse(value)
    if isinstance(value, Mapping):
        copy = {}
        for key, item in value.items():
            if isinstance(key, str) and "\n" not in key and not _complaint(key):
                copy[key] = _plain(item, (*place, key), problems, seen, above)
            else:
                problems.append(Problem(key_of(place), f"has the key {ascii(key)[:80]}, which is not a word"))
        return copy
    if isinstance(value, list | tuple):
        return [_plain(item, (*place, number), problems, seen, above) for number, item in enumerate(value)]
    if complaint := _complaint(value):
        problems.append(Problem(key_of(place), complaint))
        return None
    return value


def _complaint(value: Any) -> str | None:
    """Why a scalar is not allowed in a spec."""
    if isinstance(value, str):
        if any((ord(letter) < 32 and letter not in "\t\n") or 0xD800 <= ord(letter) < 0xE000 for letter in value):
            return f"must be text without control characters, got {ascii(value)[:80]}"
        return None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if abs(value) <= _LARGEST_INTEGER else "must be a smaller number, at most 2^53"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"must be a finite number, got {value}"
    return f"must be plain data, got {ascii(value)[:80]}"


def _count(seen: list[int]) -> None:
    """Refuses texts whose aliases expand to an enormous document."""
    seen[0] += 1
    if seen[0] > _MAX_NODES:
        raise SpecError([Problem("", f"the spec has more than {_MAX_NODES} values; an alias in it may be repeated too often")])


def _syntax_sentence(error: Exception, source: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        what = getattr(error, "problem", None) or getattr(error, "context", None) or "it cannot be read"
        return f"{source} is not valid YAML at line {mark.line + 1}, column {mark.column + 1}: {what}"
    reason = getattr(error, "reason", None) or first_line(error)
    return f"{source} is not valid YAML: {reason}"


def _parse_key(key: str) -> Place | None:
    """`students[0].width` as its parts; None when it is not a key."""
    if not re.fullmatch(r"[^.\[\]\s]+(?:\[\d{1,6}\]|\.[^.\[\]\s]+)*", key):
        return None
    return tuple(int(index) if index else word for index, word in re.findall(r"\[(\d+)\]|([^.\[\]]+)", key))


def _parse_value(text: str, key: str) -> Any:
    """The YAML value of an override."""
    value, problems = _parse(text, f"the value of {key}")
    if problems:
        raise SpecError(problem.under(key) for problem in problems)
    return value


def _parse(text: str, source: str) -> tuple[Any, list[Problem]]:
    """The plain data in a YAML text, and the problems of its keys and tags."""
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        _clean(node, (), problems, [0], ())
        return loader.construct_document(node), problems
    except RecursionError as error:
        raise SpecError([Problem("", f"{source} is nested too deeply")]) from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, LookupError, AttributeError) as error:
        raise SpecError([Problem("", _syntax_sentence(error, source))]) from error


def _put(raw: dict[str, Any], place: Place, value: Any) -> None:
    """Sets the value at `place`, and writes shorthands above it in full (`students: [mlp]`, `methods: [kd]`)."""
    container: Any = raw
    for number, part in enumerate(place):
        here = key_of(place[:number])
        last = number == len(place) - 1
        if isinstance(part, int):
            if not isinstance(container, list):
                raise SpecError([Problem(key_of(place), f"cannot be set: {here} is not a list")])
            if part >= len(container):
                raise SpecError([Problem(key_of(place), f"cannot be set: {here} has {len(container)} entries, counted from 0")])
        elif not isinstance(container, dict):
            raise SpecError([Problem(key_of(place), f"cannot be set: {here} is {show(container)}, not a mapping")])
        if last:
            container[part] = value
            return
        inner = container[part] if isinstance(part, int) else container.get(part)
        if inner is None:
            inner = {}
        elif place[0] == "students" and number == 1 and isinstance(inner, str):
            inner = {"model": inner}
        elif place[0] == "methods" and number == 0 and isinstance(inner, list) and all(isinstance(name, str) for name in inner):
            inner = {name: {} for name in inner}
        container[part] = container = inner


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def _unparse(value: Any) -> Any:
    """Plain data in the layout that the user writes."""
    if isinstance(value, Prior):
        return value.to_json()
    if isinstance(value, BaseModel):
        plain = {key: _unparse(getattr(value, key)) for key in type(value).model_fields}
        if "options" in plain and "model" in plain:
            options = plain.pop("options")
            head: dict[str, Any] = {key: plain.pop(key) for key in ("model", "name") if key in plain}
            plain = {**head, **options, **plain}
        return plain
    if isinstance(value, Mapping):
        return {key: _unparse(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unparse(item) for item in value]
    return value
