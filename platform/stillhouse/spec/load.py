"""From YAML text to a validated spec and back. All problems are reported at once, in one `SpecError`.

Relative paths (`dataset.root`, `teachers.*.weights`, `students[*].weights`, `method_paths`) are relative to the folder of the
spec file; `~` and `$NAME` are expanded.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stillhouse.errors import MAX_PROBLEMS, Problem, SpecError, UsageError
from stillhouse.spec.combinations import combination_problems
from stillhouse.spec.error_messages import key_of, to_problems
from stillhouse.spec.overrides import apply_overrides, copy_data, parse_key
from stillhouse.spec.priors import Prior
from stillhouse.spec.recipes import NEWEST, RECIPE, with_recipe, without
from stillhouse.spec.schema import StudentSpec, SweepSpec, TeacherSpec
from stillhouse.spec.secret_masking import mask_data
from stillhouse.spec.yaml_text import Place, count_value, parse_yaml, to_yaml
from stillhouse.user_paths import expand_user, is_utf8, read_regular, show_path

MAX_SPEC_BYTES = 500_000
_LARGEST_INTEGER = 2**53  # JSON readers that use float64 change larger numbers


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
    return _whole(read_draft(path, overrides))


def validate(raw: Mapping[str, Any]) -> SweepSpec:
    """The spec that a plain mapping of the user's describes, with today's training defaults; relative paths stay as they are.

    Raises:
        SpecError: with every problem.
    """
    return _whole(new_draft(raw))


def validate_stored(stored: Mapping[str, Any]) -> SweepSpec:
    """A spec that a sweep stored, with the training defaults of its recipe.

    Raises:
        SpecError: with every problem.
    """
    return _whole(draft_of(stored))


def _whole(draft: Draft) -> SweepSpec:
    if draft.problems or draft.spec is None:
        raise SpecError(draft.problems)
    return draft.spec


def read_draft(path: str | Path, overrides: Sequence[str] = ()) -> Draft:
    """The valid part of a spec file, and all problems of the rest.

    Raises:
        SpecError: the file cannot be read, or an override names a key that cannot exist.
    """
    path = expand_user(path, "the spec")
    try:
        text = read_regular(path, "the spec", MAX_SPEC_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError([Problem("", f"{show_path(path)} is not UTF-8 text: byte {error.start} cannot be decoded")]) from error
    except UsageError as error:
        raise SpecError([Problem("", f"{error}; name a YAML file")]) from error
    raw, problems = parse_yaml(text, str(path))
    try:
        raw = apply_overrides(raw, overrides)
    except SpecError as error:
        problems += error.problems
    return new_draft(resolve_paths(raw, path.absolute().parent), problems)


def new_draft(raw: Mapping[str, Any], problems: Sequence[Problem] = (), recipe: int = NEWEST) -> Draft:
    """As `draft_of`, for a spec that a user wrote: keys of the training that it lacks get the defaults of a recipe.

    A sweep that is in a home already replaces them by those of its own recipe, see `in_recipe`.
    """
    complete, added = with_recipe(raw, recipe)
    draft = draft_of(complete, problems)
    if draft.spec is not None:
        draft.spec._from_recipe = added
    return draft


def in_recipe(spec: SweepSpec, recipe: int) -> SweepSpec:
    """The spec with the training defaults of another recipe, unless the user named the recipe: `recipe: 2`."""
    if spec.recipe == recipe or RECIPE not in spec._from_recipe:
        return spec
    sections: dict[str, BaseModel] = {"training": spec.training, "search": spec.search}
    sections |= {f"teachers.{name}.train": teacher.train for name, teacher in spec.teachers.items()}
    # Without the keys that nobody wrote, on which defaults of a recipe may depend.
    unset = {
        f"{name}.{key}"
        for name, section in sections.items()
        for key in type(section).model_fields
        if key not in section.model_fields_set
    }
    written = without(spec_to_dict(spec, secrets=True), spec._from_recipe | unset)
    return _whole(new_draft(written, recipe=recipe))


def resolve_paths(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`raw` with its paths absolute: relative ones start at `folder`, `~` and `$NAME` are expanded."""
    changed: dict[str, Any] = copy_data(raw)

    def resolve(container: Any, key: Any) -> None:
        text = container[key]
        if isinstance(text, str) and text and not text.startswith(("torchvision:", "timm:", "mlflow:")):
            container[key] = os.path.normpath(folder / os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111

    if isinstance(dataset := changed.get("dataset"), dict) and "root" in dataset:
        resolve(dataset, "root")
    if isinstance(teachers := changed.get("teachers"), dict):
        for teacher in teachers.values():
            if isinstance(teacher, dict) and "weights" in teacher:
                resolve(teacher, "weights")
    if isinstance(students := changed.get("students"), list):
        for student in students:
            if isinstance(student, dict) and "weights" in StudentSpec.from_entry(student):
                resolve(student, "weights")
    if isinstance(paths := changed.get("method_paths"), list):
        for number in range(len(paths)):
            resolve(paths, number)
    return changed


def draft_of(raw: Mapping[str, Any], problems: Sequence[Problem] = ()) -> Draft:
    """Validates `raw` section by section, so that one problem does not hide another; `problems` were found before.

    Without a recipe, `raw` has the training defaults of the first release, whose stored specs name none.
    """
    found = list(problems)
    plain = _plain(raw, (), found, [0], ())
    assert isinstance(plain, dict)
    # A section whose keys are all commented out is null; a key that no spec has is an error with any value.
    plain = {key: value for key, value in plain.items() if value is not None or key not in SweepSpec.model_fields}
    reported = {problem.key for problem in found}
    broken = {_entry(parse_key(key) or ()) for key in reported}
    indices: Sequence[int] = ()
    if isinstance(plain.get("students"), list):
        indices = range(len(plain["students"]))
    spec: SweepSpec | None = None
    try:
        spec = _model(plain)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A value that was reported is null now, which is no second problem.
        found += [problem for problem in to_problems(details[:MAX_PROBLEMS]) if problem.key not in reported]
        if (more := len(details) - MAX_PROBLEMS) > 0:
            found.append(Problem("", f"{more:,} more values are wrong; correct these first"))
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


def _model(plain: Mapping[str, Any]) -> SweepSpec:
    fields = dict(plain)
    if isinstance(students := plain.get("students"), list):
        fields["students"] = [StudentSpec.from_entry(entry) for entry in students]
    if isinstance(teachers := plain.get("teachers"), dict):
        fields["teachers"] = {name: TeacherSpec.from_entry(entry) for name, entry in teachers.items()}
    # Strict JSON: no "5" or true for a number, and still lists for tuples and 1 for 1.0.
    spec = SweepSpec.model_validate_json(json.dumps(fields, allow_nan=False), strict=True)
    return spec.model_copy(update={"students": tuple(_derived(student, spec) for student in spec.students)})


def _derived(student: StudentSpec, spec: SweepSpec) -> StudentSpec:
    """The student with the model of the teacher that it begins with."""
    teacher = spec.teachers.get(student.source or "")
    return student if teacher is None else student.model_copy(update={"model": teacher.model, "options": teacher.options})


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


def _plain(value: Any, place: Place, problems: list[Problem], seen: list[int], above: tuple[int, ...]) -> Any:
    """A copy of `value` that JSON can represent; anything else is reported and becomes null."""
    count_value(seen)
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
        if not is_utf8(value):
            return f"must be UTF-8 text, got {ascii(value)[:80]}; rename the file or folder, or name a link to it"
        if any(ord(letter) < 32 and letter not in "\t\n" for letter in value):
            return f"must be text without control characters, got {ascii(value)[:80]}"
        return None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if abs(value) <= _LARGEST_INTEGER else "must be a smaller number, at most 2^53"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"must be a finite number, got {value}"
    return f"must be plain data, got {ascii(value)[:80]}"


def _unparse(value: Any) -> Any:
    """Plain data in the layout that the user writes."""
    if isinstance(value, Prior):
        return value.to_json()
    if isinstance(value, StudentSpec):
        return _unparse(value.to_entry())
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
