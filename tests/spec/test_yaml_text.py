"""Reading YAML: plain data, or problems that name key and line."""

import pytest
import yaml

from stillhouse.errors import SpecError
from stillhouse.spec.yaml_text import parse_yaml, to_yaml


def problems_of(text: str) -> dict[str, str]:
    """The messages of the problems of keys and tags, by key."""
    return {problem.key: problem.message for problem in parse_yaml(text)[1]}


@pytest.mark.parametrize("text", ["off", "1e5", "yes", "010", "~", "null", "a: b", "- x", "", " x", "1:30", "2020-01-01", "ü"])
def test_any_text_survives_being_written_as_yaml(text: str) -> None:
    assert parse_yaml(to_yaml({"key": text}))[0] == {"key": text}
    assert yaml.safe_load(to_yaml({"key": text})) == {"key": text}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the spec is empty"),
        ("# nothing\n", "the spec is empty"),
        ("- 1", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("a: [1", "not valid YAML at line 1, column 6"),
        ("a: 1\nb: c: d", "not valid YAML at line 2, column 5"),
        ("\t", "not valid YAML at line 1, column 1"),
        ("a: &x [*x]", "contains itself"),
        ("[" * 1100, "nested too deeply"),
        ("a: 1\n---\nb: 2", "not valid YAML at line 2"),
        ("a: \x07", "special characters"),
    ],
)
def test_text_that_is_not_a_yaml_mapping_is_one_problem(text: str, sentence: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_yaml(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_appears_twice_is_reported_with_both_lines() -> None:
    found = problems_of("name: s\ndataset: {name: digits}\nstudents: [mlp]\nmethods:\n  kd: {}\n  kd: {}\n")
    assert found == {"methods.kd": "appears twice, in lines 5 and 6; remove one"}


def test_a_key_that_is_not_a_word_is_reported_with_its_line() -> None:
    found = problems_of("name: s\ndataset: {name: digits}\nstudents: [mlp]\nmethods: {1: {}}\n")
    assert found == {"methods": "has the key 1 in line 4, which is not a word; quote it"}


def test_tags_that_would_run_code_are_refused() -> None:
    with pytest.raises(SpecError, match="tag"):
        parse_yaml("a: !!python/object/apply:os.system [echo]")


def test_aliases_that_expand_to_an_enormous_document_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(SpecError, match="alias"):
        parse_yaml("\n".join(lines))


def test_numbers_and_words_are_those_of_yaml_1_2() -> None:
    raw, _ = parse_yaml("{a: 1e-3, b: off, c: true, d: 010, e: 5_000, f: .5, g: 1:30, h: no}")
    assert raw == {"a": 0.001, "b": "off", "c": True, "d": "010", "e": 5000, "f": 0.5, "g": "1:30", "h": "no"}
