"""The commands that look at sweeps from outside: status, ls, stop, rm. On made-up ledgers; no cluster."""

import errno
import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.errors import DiskFullError, InfrastructureError
from stillhouse.spec.load import validate
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.sweep.home.manage import watch_status
from stillhouse.sweep.home.status import StatusReader, publish_status
from stillhouse.sweep.home.sweep_home import SweepHome, sweep_names
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.sweep import Sweep

MakeRecord = Callable[..., TrialRecord]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path)])
        return result.exit_code, result.stdout, result.stderr

    return command


@contextmanager
def running(sweep_home: SweepHome, progress: Progress) -> Iterator[None]:
    """A driver at work on the sweep."""
    with sweep_home.locked():
        sweep_home.write_spec({"name": sweep_home.name})
        with publish_status(progress, sweep_home):
            yield


@pytest.fixture
def halfway(tmp_path: Path, make_record: MakeRecord) -> SweepHome:
    """A sweep whose driver was killed: two of four trials are done."""
    sweep_home = SweepHome(tmp_path, "halfway")
    progress = Progress("halfway", quiet=True)
    progress.plan(4)
    records = [make_record("a", (0.5,)), make_record("b", (), status="failed", reason="diverged")]

    def crash() -> None:
        with running(sweep_home, progress):
            for record in records:
                sweep_home.ledger.write(record)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    return sweep_home


def test_status_of_a_sweep_that_runs_shows_what_its_driver_wrote(
    run: Run, tmp_path: Path, make_trial: Callable[..., Trial]
) -> None:
    progress = Progress("s", quiet=True)
    progress.plan(7)
    progress.trial_started(make_trial("under-way"))
    progress.trial_epoch("under-way", 1, 0.25)
    progress.teacher("big", "teacher big: epoch 1/2")
    sweep_home = SweepHome(tmp_path, "s")
    with running(sweep_home, progress):
        code, output, _ = run("status", "s", "--json")
        state = json.loads(output)
        assert code == 0
        assert (state["state"], state["planned"], state["done"]) == ("running", 7, 0)
        assert [(each["trial"], each["epoch"]) for each in state["running"]] == [("under-way", 1)]
        assert state["teachers"] == ["teacher big: epoch 1/2"]
        _, output, _ = run("status", "s")
        assert "0/7 trials  1 running" in output
        assert "stillhouse stop s --home" in output
        sweep_home.stop_request.touch()
        assert json.loads(run("status", "s", "--json")[1])["state"] == "ending"
        sweep_home.stop_request.unlink()
    assert json.loads(run("status", "s", "--json")[1])["running"] == []


def test_status_after_a_crash_counts_the_ledger_and_says_how_to_go_on(run: Run, halfway: SweepHome) -> None:
    state = json.loads(run("status", "halfway", "--json")[1])
    assert {key: state[key] for key in ("state", "planned", "done", "finished", "failed", "stopped")} == {
        "state": "unfinished", "planned": 4, "done": 2, "finished": 1, "failed": 1, "stopped": 0,
    }  # fmt: skip
    assert [best["trial"] for best in state["best"]] == ["a"]
    _, output, _ = run("status", "halfway")
    assert "not running; continue with: stillhouse resume halfway --home" in output
    assert "stillhouse retry halfway --home" in output


def test_watching_a_sweep_that_runs_shows_it_until_its_driver_ends(tmp_path: Path, make_record: MakeRecord) -> None:
    sweep_home, progress, screen = SweepHome(tmp_path, "s"), Progress("s", quiet=True), io.StringIO()
    progress.plan(2)
    console = Console(file=screen, force_terminal=True, width=100)
    seen: list[dict[str, Any]] = []
    watching = threading.Thread(target=lambda: seen.append(watch_status(StatusReader(sweep_home), console)))
    with running(sweep_home, progress):
        watching.start()
        for key in ("a", "b"):
            sweep_home.ledger.write(make_record(key))
            deadline = time.monotonic() + 60
            while f"{len(list(sweep_home.ledger.keys()))}/2 trials" not in screen.getvalue():
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert not seen
    watching.join()
    assert (seen[0]["state"], seen[0]["done"]) == ("finished", 2)


def test_watching_a_sweep_that_does_not_run_ends_with_its_state(run: Run, halfway: SweepHome) -> None:
    code, output, _ = run("status", "halfway", "--watch", "--json")
    assert code == 0
    assert json.loads(output)["done"] == 2


def test_status_reads_a_home_without_the_state_of_a_driver(run: Run, halfway: SweepHome) -> None:
    for content in ("", "[]", '{"planned": '):
        (halfway.folder / "state.json").write_text(content)
        assert json.loads(run("status", "halfway", "--json")[1])["done"] == 2
    (halfway.folder / "state.json").unlink()
    assert json.loads(run("status", "halfway", "--json")[1])["planned"] is None
    assert run("status", "halfway")[0] == 0


def test_a_sweep_whose_driver_ended_well_is_finished(run: Run, tmp_path: Path, make_record: MakeRecord) -> None:
    sweep_home = SweepHome(tmp_path, "s")
    progress = Progress("s", quiet=True)
    progress.plan(1)
    with running(sweep_home, progress):
        sweep_home.ledger.write(make_record("a"))
    assert json.loads(run("status", "s", "--json")[1])["state"] == "finished"
    assert "stillhouse report s --home" in run("status", "s")[1]


def test_ls_lists_every_sweep_with_its_best(run: Run, halfway: SweepHome) -> None:
    SweepHome(halfway.home, "new").write_spec({"name": "new"})
    facts = {each["sweep"]: each for each in json.loads(run("ls", "--json")[1])}
    assert list(facts) == ["halfway", "new"]
    assert facts["halfway"]["best"]["validation_accuracy"] == 0.5
    assert facts["halfway"]["bytes"] == sum(path.stat().st_size for path in halfway.folder.rglob("*") if path.is_file())
    assert facts["new"].pop("metric")["name"] == "accuracy"
    assert facts["new"] | {"bytes": 0, "last_used": ""} == {
        "sweep": "new", "state": "unfinished", "planned": None, "done": 0, "finished": 0, "stopped": 0, "failed": 0,
        "best": None, "bytes": 0, "last_used": "",
    }  # fmt: skip
    _, output, _ = run("ls")
    assert [line.split()[:3] for line in output.splitlines()[1:]] == [
        ["halfway", "unfinished", "2/4"],
        ["new", "unfinished", "0/?"],
    ]


def test_ls_of_an_empty_home_is_empty(run: Run) -> None:
    assert json.loads(run("ls", "--json")[1]) == []


def test_an_error_of_the_disk_that_nobody_foresaw_is_one_sentence_too(
    run: Run, halfway: SweepHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_reader: StatusReader) -> dict[str, Any]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/dev/sda")

    monkeypatch.setattr(StatusReader, "read", broken)
    code, output, complaint = run("status", "halfway")
    assert (code, output, complaint) == (4, "", "error: Input/output error (/dev/sda)\n")


@pytest.mark.parametrize(
    ("error", "beginning"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/other/file"), "Permission denied (/other/file)"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error ({folder})"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device ({folder}); finished trials are stored. Free",
        ),
        (
            DiskFullError("no space for 16 bytes of knowledge in /node/x"),
            "no space for 16 bytes of knowledge in /node/x; f",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "/node/x"),
            "Disk quota exceeded (/node/x); finished trials are stored. Free",
        ),
        (InfrastructureError("a node is gone"), "a node is gone"),
    ],
)
def test_what_the_disk_says_ends_a_sweep_with_its_place_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, beginning: str
) -> None:
    def broken() -> None:
        raise error

    sweep = Sweep(
        validate({"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": ["scratch"]}), home=tmp_path
    )
    monkeypatch.setattr(sweep, "plan", broken)
    with pytest.raises(InfrastructureError) as caught:
        sweep.run()
    assert str(caught.value).startswith(beginning.format(folder=sweep.sweep_home.folder))
    assert "\n" not in str(caught.value)


def test_stop_says_that_nothing_runs(run: Run, halfway: SweepHome) -> None:
    code, _, complaint = run("stop", "halfway")
    assert code == 2
    assert f"no process runs sweep 'halfway' under {halfway.home}" in complaint
    assert not halfway.stop_request.exists()


def test_stop_leaves_a_request_and_reports_when_the_sweep_does_not_stop_in_time(run: Run, halfway: SweepHome) -> None:
    with halfway.locked():
        code, output, _ = run("stop", "halfway", "--wait", "0")
        assert code == 0
        assert "still stopping after 0 s" in output
        assert halfway.stop_request.exists()


def test_rm_needs_a_confirmation_and_without_a_terminal_needs_yes(run: Run, halfway: SweepHome) -> None:
    code, _, complaint = run("rm", "halfway")
    assert code == 2
    assert "needs a confirmation: run the command in a terminal, or give --yes" in complaint
    assert sweep_names(halfway.home) == ["halfway"]


@pytest.mark.parametrize(("answer", "left"), [("n", ["halfway"]), ("y", [])])
def test_rm_does_what_it_is_answered_on_a_terminal(halfway: SweepHome, answer: str, left: list[str]) -> None:
    command = [sys.executable, "-m", "stillhouse.cli", "rm", "halfway", "--home", str(halfway.home)]
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", buffering=0) as terminal:
        terminal.write(f"{answer}\n".encode())
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            command, stdin=theirs, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=120
        )
        os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert f"Remove {halfway.folder} with 2 trials? [y/N]" in done.stderr
    assert sweep_names(halfway.home) == left


def test_rm_keeps_teachers_and_knowledge(run: Run, halfway: SweepHome) -> None:
    for kept in ("teachers/t/card", "knowledge/k/manifest"):
        (halfway.home / kept).parent.mkdir(parents=True)
        (halfway.home / kept).write_text("")
    size = sum(path.stat().st_size for path in halfway.folder.rglob("*") if path.is_file())
    code, output, _ = run("rm", "halfway", "--yes", "--json")
    assert code == 0
    assert json.loads(output) == {"removed": "halfway", "bytes": size, "kept": None}
    assert sorted(path.name for path in halfway.home.rglob("*") if path.is_file()) == ["card", "manifest"]


def test_rm_refuses_a_sweep_that_runs(run: Run, halfway: SweepHome) -> None:
    with halfway.locked():
        code, _, complaint = run("rm", "halfway", "--yes")
    assert code == 4
    assert "another process already runs sweep" in complaint
    assert sweep_names(halfway.home) == ["halfway"]


@pytest.mark.parametrize("command", [["status"], ["stop"], ["rm", "--yes"], ["resume"], ["retry"], ["extend", "--trials", "9"]])
def test_an_unknown_sweep_is_wrong_usage_with_a_suggestion(run: Run, halfway: SweepHome, command: list[str]) -> None:
    code, _, complaint = run(command[0], "halfwya", *command[1:])
    assert code == 2
    assert "no sweep 'halfwya'" in complaint
    assert "did you mean 'halfway'?" in complaint


def test_a_record_set_aside_is_kept_each_time(tmp_path: Path, make_record: MakeRecord) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for reason in ("first", "second"):
        ledger.write(make_record("a", status="failed", reason=reason))
        ledger.set_aside("a")
        assert ledger.read("a") is None
        assert list(ledger.keys()) == []
    texts: list[Any] = [path.read_text() for path in sorted((tmp_path / "ledger" / "aside").iterdir())]
    assert ["first" in texts[0], "second" in texts[1]] == [True, True]
