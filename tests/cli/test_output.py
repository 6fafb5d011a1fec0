"""What commands print: documents, tables and sentences."""

import io
import sys
from typing import Any

import pytest

from stillhouse.cli.output import answer_line, command_line, difference_line, make_console, make_table, metric_on, print_json
from stillhouse.spec.metric import ACCURACY, Metric

ANSWER: dict[str, Any] = {
    "question": "most accurate",
    "budget": None,
    "trial": "aa00000000000001",
    "student": "resnet8",
    "method": "kd",
    "parameters": 77754.0,
    "test_accuracy": 0.9125,
    "test_interval": None,
    "seeds": 1,
    "tied_with": [],
}


def test_a_document_that_is_not_valid_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"accuracy": float("nan")})


def test_a_pipe_gets_lines_of_160_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert make_console().width == 160


def test_numbers_are_aligned_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table("model", "bytes", right=("bytes",))
    table.add_row("mlp", "7")
    table.add_row("resnet8", "1,234")
    table.print(make_console())
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "model    bytes",
        "mlp          7",
        "resnet8  1,234",
    ]


def test_the_command_line_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/stillhouse", "sweep", "my spec.yaml"])
    assert command_line() == "stillhouse sweep 'my spec.yaml'"


def test_a_view_that_differs_and_one_that_is_damaged() -> None:
    view = {"teacher": "big", "knowledge": "logits", "view": 3}
    assert difference_line({**view, "largest_difference": 0.0123, "sample": 7}) == (
        "teacher big: logits of view 3 differs by up to 0.0123 (sample 7); it will be computed again"
    )
    assert difference_line({**view, "reason": "shard 0 is cut off"}) == (
        "teacher big: logits of view 3 is damaged (shard 0 is cut off); it will be computed again"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "most accurate: resnet8 with kd, 77,754 parameters, test 0.9125 (one seed), trial aa00000000000001"),
        (
            {"test_interval": [0.9, 0.925], "seeds": 3, "tied_with": ["b", "c"]},
            "most accurate: resnet8 with kd, 77,754 parameters, test 0.9125 (95% interval 0.9000 to 0.9250, n = 3), "
            "trial aa00000000000001; not significantly better than 2 others",
        ),
        (
            {"budget": {"parameters": 100000.0}, "sweep": "tiny", "tied_with": ["b"]},
            "parameters <= 100000: resnet8 with kd of tiny, 77,754 parameters, test 0.9125 (one seed), trial aa00000000000001; "
            "not significantly better than 1 other",
        ),
        ({"budget": {"macs": 10.0}, "trial": None}, "macs <= 10: no finished student fits"),
    ],
)
def test_an_answer_is_one_line(change: dict[str, Any], line: str) -> None:
    assert answer_line(ANSWER | change, ACCURACY) == line


def test_the_metric_of_a_document_is_found_by_its_split() -> None:
    document = {"parameters": 7, "validation_mean_absolute_error": 3.25, "test_mean_absolute_error": None, "valid": 1}
    assert metric_on("validation", document) == ("mean absolute error", 3.25)
    assert metric_on("test", document) is None
    assert metric_on("test", {"test_accuracy": 0.5}) == ("accuracy", 0.5)


def test_an_answer_reads_the_metric_of_its_task() -> None:
    error = Metric(name="mean_absolute_error", direction="min", label="mean absolute error")
    assert "test 3.2500 (one seed)" in answer_line({**ANSWER, "test_mean_absolute_error": 3.25}, error)
