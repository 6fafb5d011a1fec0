"""What the README shows works."""

import re
from pathlib import Path

from stillhouse import methods
from stillhouse.spec.yaml_text import parse_yaml
from stillhouse.sweep.planning.spec_check import check
from stillhouse.testing import check_method

README = Path(__file__).parents[1] / "README.md"


def block(language: str, beginning: str) -> str:
    """The README's block of code that begins with these words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = [each for each in blocks if each.startswith(beginning)]
    return str(found)


def test_the_spec_of_the_readme_is_sound() -> None:
    raw, problems = parse_yaml(block("yaml", "# spec.yaml"), "README.md")
    assert not problems
    assert check(raw).name == "fashion"


def test_the_method_of_the_readme_has_under_30_lines_and_conforms(tmp_path: Path) -> None:
    code = block("python", '"""Regression')
    assert len(code.splitlines()) < 30
    (tmp_path / "margin.py").write_text(code)
    methods.add_folder(tmp_path)
    check_method(methods.find("margin")())
