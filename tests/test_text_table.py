"""Tables on terminals of any width: no word or number is broken, and cells are text, never markup."""

import io
import re
import time
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from stillhouse.text_table import TextTable, log_line, shown_after

ROWS = [
    ("fashion-resnet-search", "running", "1,234,567,890", "0.9312 resnet20 attention_transfer"),
    ("[/b] [red]x[/red]", "done", "7", ""),
]


def printed(width: int, *, terminal: bool = True) -> str:
    table = TextTable(("sweep", "state", "bytes", "best"), right=("bytes",))
    for row in ROWS:
        table.add_row(*row)
    file = io.StringIO()
    table.print(Console(file=file, width=width, force_terminal=terminal, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 200])
def test_no_word_or_number_is_broken_at_any_width(width: int) -> None:
    words = printed(width).split()
    assert {word for row in ROWS for cell in row for word in cell.split()} <= set(words)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_lines_fit_into_a_terminal_of_usual_width(width: int) -> None:
    assert all(len(line) <= width for line in printed(width).splitlines())


def test_a_pipe_has_one_line_for_each_row_whatever_its_width() -> None:
    assert len(printed(20, terminal=False).splitlines()) == 1 + len(ROWS)


def test_what_is_quick_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown_after(range(5), "trials checked")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_what_takes_longer_than_two_seconds_shows_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: float(next(times)))
    assert list(shown_after(range(6), "trials checked")) == list(range(6))
    assert re.fullmatch(r"\d\d:\d\d:\d\d 1 trials checked", capsys.readouterr().err.splitlines()[0])


@pytest.fixture
def in_time_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def use(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield use
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("zone", "hour"), [("UTC", "13"), ("JST-9", "22"), ("EST+5", "08")])
def test_a_log_line_begins_with_the_local_time(
    zone: str, hour: str, in_time_zone: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_time_zone(zone)
    moment = time.localtime(13 * 3600 + 5 * 60 + 9)  # 13:05:09 UTC on the first day of 1970
    monkeypatch.setattr("time.localtime", lambda: moment)
    assert log_line("teacher big: epoch 1/2") == f"{hour}:05:09 teacher big: epoch 1/2"
