"""Rights taken from a sweep's folder: one sentence before Ray starts, and within seconds while the sweep runs."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stillhouse.errors import InfrastructureError
from stillhouse.sweep.failures import check_folder, check_teacher_folders, folder_errors
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.sweep import Sweep

NOBODY = 65534
PARTS = ("ledger", "students", "trials", "report")


@pytest.fixture
def sweep_home() -> Iterator[SweepHome]:
    """A sweep that was started, in a folder that other users can reach."""
    root = Path(tempfile.mkdtemp(prefix="stillhouse-rights-"))
    root.chmod(0o755)
    made = SweepHome(root, "s")
    for part in PARTS:
        (made.folder / part).mkdir(parents=True)
    made.write_spec({"name": "s"})
    for folder in folders_of(made):
        folder.chmod(0o777)
    yield made
    for folder in folders_of(made):
        folder.chmod(0o777)
    shutil.rmtree(root)


def folders_of(sweep_home: SweepHome) -> list[Path]:
    return [sweep_home.folder, *(sweep_home.folder / part for part in PARTS)]


def as_a_user(action: Callable[[], None]) -> str:
    """What an action raises for a user without root's rights; in a process of its own where these are root's."""
    if os.geteuid() != 0:
        return message_of(action)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.write(writer, message_of(action).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(child, 0)
    return text


def message_of(action: Callable[[], None]) -> str:
    try:
        action()
    except InfrastructureError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("part", ["", *PARTS])
def test_every_part_of_the_folder_that_cannot_be_written_is_named(sweep_home: SweepHome, part: str) -> None:
    assert as_a_user(lambda: check_folder(sweep_home)) == ""
    folder = sweep_home.folder / part
    folder.chmod(0o555)
    assert as_a_user(lambda: check_folder(sweep_home)) == (
        f"the folder {folder} cannot be written; finished trials are stored. Make it writable and continue with: "
        f"stillhouse resume s --home {sweep_home.home}"
    )


def test_it_is_the_reason_of_what_fails_because_of_it(sweep_home: SweepHome) -> None:
    sweep_home.ledger.folder.chmod(0o555)

    def fails() -> None:
        with folder_errors(sweep_home):
            raise InfrastructureError("2 of 2 trials did not finish")

    assert f"the folder {sweep_home.ledger.folder} cannot be written" in as_a_user(fails)


@pytest.mark.parametrize(("part", "what"), [("teachers", "weights"), ("knowledge", "sealed views")])
def test_a_folder_of_the_teachers_that_cannot_be_written_is_named(sweep_home: SweepHome, part: str, what: str) -> None:
    folder = sweep_home.home / part
    sentence = (
        f"the folder {folder} cannot be written, and the teachers' {what} are stored there; make it writable, or choose "
        "another home with --home"
    )
    assert as_a_user(lambda: check_teacher_folders(sweep_home.home)) == ""
    folder.mkdir()
    folder.chmod(0o555)
    assert as_a_user(lambda: check_teacher_folders(sweep_home.home)) == sentence
    folder.chmod(0o777)
    assert as_a_user(lambda: check_teacher_folders(sweep_home.home)) == ""


def test_a_sweep_with_teachers_names_it_before_a_cluster_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "knowledge").mkdir()
    may = os.access
    # Root may write anywhere.
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path / "knowledge" and may(path, mode))
    spec = {
        "name": "s",
        "dataset": {"name": "digits", "validation": 80, "options": {"limit": 200}},
        "teachers": {"big": {"model": "lenet"}},
        "students": ["mlp"],
        "methods": {"scratch": {}},
        "search": {"trials_per_method": 1, "max_epochs": 1},
    }
    started: list[str] = []
    monkeypatch.setattr("stillhouse.sweep.cluster.cluster.Cluster", lambda *_arguments, **_options: started.append("cluster"))
    for action in (Sweep(check(spec), home=tmp_path).run, Sweep(check(spec), home=tmp_path).train_teachers):
        with pytest.raises(InfrastructureError, match="knowledge cannot be written, and the teachers' sealed views"):
            action()
    assert started == []
