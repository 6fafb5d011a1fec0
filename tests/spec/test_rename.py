"""The key `rename` before any weights are read."""

import pytest

from stillhouse.spec.rename import rename_problem


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        ("^linear", "fc", None),
        (r"(\d+)", r"block\1", None),
        ("^ema", None, None),
        ("(", "fc", "must be a regular expression, got '(': missing ), unterminated subpattern"),
        ("a", r"\1", "must be a replacement as Python's re.sub takes it, got '\\1': invalid group reference 1"),
        ("a", r"\g<no>", "must be a replacement as Python's re.sub takes it, got '\\g<no>': unknown group name"),
    ],
)
def test_expressions_and_replacements_are_those_of_re_sub(pattern: str, replacement: str | None, problem: str | None) -> None:
    found = rename_problem(pattern, replacement)
    assert found is None if problem is None else found is not None and found.startswith(problem)
