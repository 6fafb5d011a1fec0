"""A user-defined function may have options that are called `weights`, `head` or `rename`, as before these were keys."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.spec.load import new_draft, read_draft, spec_to_dict, validate

BASE: dict[str, Any] = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": {"kd": {}}}


def test_options_of_a_students_function_stay_its_options(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: s\ndataset: {name: digits}\nmethods: [scratch]\n"
        "students: [{model: 'mynet:tiny', weights: net.pt, head: linear, rename: true}]\n"
    )
    draft = read_draft(spec)
    assert draft.problems == ()
    assert draft.spec is not None
    (student,) = draft.spec.students
    # The path is not made absolute: the function read it from the working folder.
    assert student.options == {"weights": "net.pt", "head": "linear", "rename": True}
    assert student.start == {}
    assert validate(spec_to_dict(draft.spec)).students == draft.spec.students


@pytest.mark.parametrize(
    "entry",
    [{"head": "linear"}, {"head": "new"}, {"rename": "x"}, {"weights": "a.pt", "head": "linear", "rename": 3}],
    ids=str,
)
def test_options_of_a_teachers_function_stay_its_options(entry: dict[str, Any]) -> None:
    (teacher,) = validate({**BASE, "teachers": {"big": {"model": "mynet:large", **entry}}}).teachers.values()
    assert teacher.options == {key: value for key, value in entry.items() if key != "weights"}
    assert (teacher.head, teacher.rename) == (None, {})


def test_weights_of_a_users_network_take_a_new_head_and_other_names() -> None:
    entry = {"model": "mynet:large", "weights": "a.pt", "head": "new", "rename": {"^a": "b"}}
    (teacher,) = validate({**BASE, "teachers": {"big": entry}}).teachers.values()
    assert (teacher.options, teacher.head, teacher.rename) == ({}, "new", {"^a": "b"})
    assert teacher.is_trained


@pytest.mark.parametrize(
    ("student", "key"),
    [
        ({"name": "s", "from": "big", "weights": "a.pt"}, "students[1].weights"),
        ({"model": "mlp", "weights": "mlflow:models:/net/1"}, "students[1].weights"),
        ({"model": "mlp", "weights": "a.pt", "head": "other"}, "students[1].head"),
        ({"model": "mlp", "weights": 3}, "students[1].weights"),
    ],
    ids=str,
)
def test_a_start_that_cannot_be_is_one_problem(student: dict[str, Any], key: str) -> None:
    problems = new_draft({**BASE, "teachers": {"big": "resnet8"}, "students": ["lenet", student]}).problems
    assert [problem.key for problem in problems] == [key]
