"""The card of a student that had teachers."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from stillhouse.export.card import render_card
from stillhouse.spec.metric import Metric

Exported = tuple[Any, Path, dict[str, Any]]
TEACHERS = [
    {"name": name, "model": "resnet20", "key": key, "parameters": 272_474, "size_bytes": 1, "test_accuracy": accuracy}
    for name, key, accuracy in (("big", "c0ffee", 0.9375), ("old", "decade", None))
]


@pytest.fixture
def document(exported: Exported) -> dict[str, Any]:
    return copy.deepcopy(exported[2])


def rows_of(card: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| ([^|]+) \| ((?:[^|]|\\\|)+) \|$", card, re.MULTILINE)


def test_teachers_drop_and_ratio_are_those_of_the_record(document: dict[str, Any]) -> None:
    document["teachers"] = TEACHERS
    document["metrics"] |= {"accuracy_drop": 0.0625, "compression_ratio": 12.5}
    rows = rows_of(render_card(document))
    assert ("teacher", "big (resnet20, 272,474 parameters)") in rows
    assert ("teacher", "old (resnet20, 272,474 parameters)") in rows
    assert [value for name, value in rows if name == "teacher's test accuracy"] == ["0.9375", "not measured"]
    assert ("test accuracy worse than the teacher's by", "0.0625") in rows
    assert ("teacher's parameters over the student's", "12.50") in rows
    assert ("weights of big", "`c0ffee`") in rows
    assert ("teacher", "none") not in rows


def test_hyperparameters_are_listed_as_they_were(document: dict[str, Any]) -> None:
    document["hyperparameters"] = {"temperature": 4.0, "layers": ["a", "b"], "schedule": None}
    rows = rows_of(render_card(document))
    assert {("temperature", "4.0"), ("layers", '["a", "b"]'), ("schedule", "null")} <= set(rows)


def test_the_commands_that_continued_the_sweep_follow_the_one_that_began_it(document: dict[str, Any]) -> None:
    document["trained"] |= {
        "command": "stillhouse sweep a.yaml",
        "later_commands": ["stillhouse extend a", "stillhouse retry a"],
    }
    rows = rows_of(render_card(document))
    place = rows.index(("command", "stillhouse sweep a.yaml"))
    assert rows[place + 1 : place + 3] == [("continued by", "stillhouse extend a"), ("continued by", "stillhouse retry a")]
    del document["trained"]["later_commands"]
    assert "continued by" not in render_card(document)


def test_a_name_cannot_break_a_table(document: dict[str, Any]) -> None:
    document["student"] = {"name": "a|b", "model": "mine:net", "options": {"note": "x | y\n<b>"}}
    card = render_card(document)
    assert card.startswith("# a\\|b from sweep tiny\n")
    assert ("model", 'mine:net {"note": "x \\| y\\\\n&lt;b>"}') in rows_of(card)


def test_the_card_of_another_metric_names_it_and_never_accuracy(document: dict[str, Any]) -> None:
    metric = Metric(name="mae", direction="min", label="mean absolute error")
    document["metric"] = metric.model_dump()
    document["teachers"] = [{**TEACHERS[0], "test_mae": 2.0}]
    document["metrics"] = {
        "parameters": 100,
        "size_bytes": 400,
        "macs": 9,
        "test_mae": 3.25,
        "validation_mae": 3.0,
        "mae_drop": 1.25,
    }
    card = render_card(document)
    assert ("test mean absolute error", "3.25") in rows_of(card)
    assert ("teacher's test mean absolute error", "2.00") in rows_of(card)
    assert ("test mean absolute error worse than the teacher's by", "1.25") in rows_of(card)
    assert "A lower mean absolute error is better" in card
    assert "accuracy" not in card.lower()


def test_a_document_of_the_first_release_has_accuracy(document: dict[str, Any]) -> None:
    del document["metric"]
    assert any(name == "test accuracy" for name, _ in rows_of(render_card(document)))


def test_the_card_of_another_output_prints_its_numbers_and_names_no_class(document: dict[str, Any]) -> None:
    card = render_card({**document, "output": "angle"})
    assert "the output `angle` is [batch" in card
    assert "    angle = student((pixels - mean) / std)\nprint(angle)\n```" in card
    assert "class" not in card.lower()
    assert "logits" not in card
    assert 'print(facts["class_names"][logits.argmax()])\n```' in render_card(document)
