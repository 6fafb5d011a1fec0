"""The log of fills: what was computed, by which teacher, for which sweeps."""

import json
from pathlib import Path
from typing import Any

from stillhouse.knowledge.fill_log import append_line, count_fills, fill_log, logged_stretches


def entry(**changes: Any) -> str:
    return json.dumps({"teacher": "a", "rows": 10, "bytes": 400, "seconds": 0.5, "stretch": "s1", **changes})


def test_without_a_log_nothing_was_filled(tmp_path: Path) -> None:
    assert count_fills(tmp_path, "a") == {"samples": 0, "bytes": 0, "seconds": 0}
    assert logged_stretches(tmp_path, "a") == set()


def test_fills_of_one_teacher_are_added_up(tmp_path: Path) -> None:
    for line in (entry(), entry(rows=5, bytes=200, seconds=0.25, stretch="s2"), entry(teacher="b", rows=1000)):
        append_line(fill_log(tmp_path), line)
    assert count_fills(tmp_path, "a") == {"samples": 15, "bytes": 600, "seconds": 0.75}
    assert logged_stretches(tmp_path, "a") == {"s1", "s2"}


def test_fills_for_a_sweep_are_those_that_it_requested(tmp_path: Path) -> None:
    append_line(fill_log(tmp_path), entry(sweeps=["mine", "other"]))
    append_line(fill_log(tmp_path), entry(sweeps=["other"], rows=1000))
    assert count_fills(tmp_path, "a", sweep="mine")["samples"] == 10
    assert count_fills(tmp_path, "a", sweep="third")["samples"] == 0


def test_fills_after_a_byte_are_those_of_a_later_run(tmp_path: Path) -> None:
    append_line(fill_log(tmp_path), entry())
    length = fill_log(tmp_path).stat().st_size
    append_line(fill_log(tmp_path), entry(rows=7))
    assert count_fills(tmp_path, "a", since_byte=length)["samples"] == 7


def test_a_torn_line_does_not_hide_the_next_one(tmp_path: Path) -> None:
    append_line(fill_log(tmp_path), entry())
    with fill_log(tmp_path).open("ab") as file:
        file.write(b'\n{"teacher": "a", "rows": 9')
    append_line(fill_log(tmp_path), entry(rows=5))
    append_line(fill_log(tmp_path), json.dumps({"teacher": "a", "rows": 3}))
    assert count_fills(tmp_path, "a")["samples"] == 15
