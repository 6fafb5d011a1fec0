"""The controls of a spec, and the untrained teachers that one of them adds."""

from typing import Any

import pytest

from stillhouse.errors import SpecError
from stillhouse.spec.controls import all_teachers, resolved_controls, teacher_spec
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import is_untrained, trained_name, untrained_name

RAW: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "teachers": {"big": {"model": "lenet"}, "wide": {"model": "mlp"}},
    "students": ["mlp"],
}


def test_only_the_control_with_untrained_teachers_adds_teachers() -> None:
    assert [*all_teachers(validate(RAW))] == ["big", "wide"]
    spec = validate({**RAW, "controls": ["scratch", "random_teacher"]})
    assert [*all_teachers(spec)] == ["big", "wide", "big.untrained", "wide.untrained"]
    assert teacher_spec(spec, "wide.untrained") is teacher_spec(spec, "wide") is spec.teachers["wide"]


def test_no_teacher_of_a_spec_can_have_the_name_of_an_untrained_one() -> None:
    with pytest.raises(SpecError, match="must be a name of letters, digits"):
        validate({**RAW, "teachers": {"big.untrained": {"model": "lenet"}}})


def test_teachers_that_teach_together_are_all_untrained() -> None:
    assert untrained_name("big+wide") == "big.untrained+wide.untrained"
    assert (is_untrained("big.untrained"), is_untrained("big"), trained_name("big.untrained")) == (True, False, "big")


def test_the_baseline_is_always_a_control_and_the_first() -> None:
    assert resolved_controls(None, "scratch") == ("scratch",)
    assert resolved_controls(["random_teacher"], "scratch") == ("scratch", "random_teacher")
    assert resolved_controls(["random_teacher", "scratch"], "scratch") == ("scratch", "random_teacher")


def test_a_stored_spec_of_the_first_release_has_no_controls_and_one_of_today_keeps_them() -> None:
    assert validate(RAW).controls is None
    spec = validate({**RAW, "controls": ["scratch", "random_teacher"]})
    assert validate(spec_to_dict(spec)) == spec


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("scratch", "controls must be a list such as"),
        ([1], "controls must be a list such as"),
        (["scratch", "scratch"], "must name each control once, 'scratch' appears twice"),
    ],
)
def test_wrong_controls_are_one_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        validate({**RAW, "controls": value})
