"""Temporary folders of killed processes are removed by the next one; those in use and those of others are not."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stillhouse.temporary_folders import remove_abandoned, temporary_folder

_HOLD = """
import sys, time
from stillhouse.temporary_folders import temporary_folder
with temporary_folder("tune") as folder:
    (folder / "trial").write_text("something")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def another_process() -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A process that holds a temporary folder, and the folder."""
    with subprocess.Popen([sys.executable, "-c", _HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_the_folder_is_empty_private_and_gone_afterwards(base: Path) -> None:
    with temporary_folder("tune") as folder:
        assert not list(folder.iterdir())
        assert folder.parent.name.startswith("stillhouse-tune-")
        assert folder.parent.stat().st_mode & 0o077 == 0
    assert not list(base.iterdir())


def test_it_is_gone_after_an_error(base: Path) -> None:
    with pytest.raises(ValueError, match="inside"), temporary_folder("model"):
        raise ValueError("inside")
    assert not list(base.iterdir())


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one_and_that_of_a_live_one_is_not() -> None:
    with another_process() as (process, folder):
        with temporary_folder("code"):
            assert (folder / "trial").read_text() == "something"
        process.kill()
        process.wait()
        assert folder.exists()
        with temporary_folder("code"):
            assert not folder.parent.exists()


def test_folders_of_earlier_releases_are_removed_when_nothing_changed_in_them_for_a_week(base: Path) -> None:
    old, recent, other = base / "stillhouse-tune-a1b2", base / "stillhouse-tune-c3d4", base / "stillhouse-1000-mark"
    long_ago = time.time() - 8 * 24 * 3600
    for folder in (old, recent, other):
        (folder / "run").mkdir(parents=True)
        (folder / "run" / "file").touch()
        for path in (folder / "run" / "file", folder / "run", folder):
            os.utime(path, (long_ago, long_ago))
    os.utime(recent / "run" / "file")
    remove_abandoned()
    assert not old.exists()
    assert recent.exists(), "a file in it is new"
    assert other.exists(), "the folder of copies of a home is no temporary folder"


def test_links_and_files_of_this_name_remain(base: Path) -> None:
    target = base / "mine"
    target.mkdir()
    (target / "in-use.lock").touch()
    (base / "stillhouse-tune-link").symlink_to(target)
    (base / "stillhouse-tune-file").touch()
    remove_abandoned()
    assert target.exists()
    assert {each.name for each in base.iterdir()} == {"mine", "stillhouse-tune-link", "stillhouse-tune-file"}
