"""`stillhouse spec`: one key, a section, the page in docs, the JSON Schema."""

import json
from pathlib import Path

from typer.testing import CliRunner

from stillhouse.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "spec-reference.md"


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["spec", *arguments])
    assert result.exit_code == code, result.stderr
    return result.stdout if code == 0 else result.stderr


def test_the_page_is_what_the_program_prints() -> None:
    assert PAGE.read_text() == run("--markdown"), "make it again: stillhouse spec --markdown > docs/spec-reference.md"


def test_one_key_shows_its_values_its_default_and_an_example() -> None:
    shown = run("teachers.big.train.epochs")
    assert shown.splitlines()[:3] == ["teachers.NAME.train.epochs: whole number >= 1", "default: 30", "example: epochs: 60"]


def test_a_section_is_a_table_of_its_keys() -> None:
    shown = run("search.budget")
    assert "search.budget.gpu_hours" in shown
    assert "search.max_epochs" not in shown


def test_the_documents_for_programs() -> None:
    assert json.loads(run("--json-schema"))["properties"]["search"]
    (entry,) = json.loads(run("views.count", "--json"))
    assert (entry["key"], entry["default"], entry["section"]) == ("views.count", 1, False)


def test_wrong_usage_is_a_sentence() -> None:
    assert "did you mean 'views'" in run("view", code=2)
    assert "use one of" in run("--json", "--markdown", code=2)
    assert "leave out KEY" in run("views", "--json-schema", code=2)
