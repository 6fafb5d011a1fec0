"""The page of methods is made from their cards."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse import methods
from stillhouse.cli import app
from stillhouse.cli.catalogue import needed_by_default

PAGE = Path(__file__).parents[2] / "methods" / "README.md"


def test_the_page_of_methods_is_up_to_date() -> None:
    printed = CliRunner().invoke(app, ["methods", "--markdown"]).stdout
    assert PAGE.read_text() == printed, "make it again: stillhouse methods --markdown > methods/README.md"


def test_every_method_is_on_the_page_once() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == methods.names()


@pytest.mark.parametrize("name", methods.names())
def test_what_a_method_needs_by_default_has_names(name: str) -> None:
    needed = needed_by_default(methods.find(name))
    assert all(needed)
    assert len(set(needed)) == len(needed)


def test_the_page_names_the_tasks_of_every_method() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    tasks = {row[0].split("`")[1]: row[3] for row in rows}
    assert tasks["scratch"] == tasks["attention_transfer"] == tasks["variational"] == "any"
    assert tasks["kd"] == tasks["contrastive"] == "classification"
