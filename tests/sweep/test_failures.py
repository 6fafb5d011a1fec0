"""What ends a sweep too early is one sentence with the command that continues it."""

import errno
import os
from pathlib import Path

import pytest

from stillhouse.errors import DiskFullError, InfrastructureError, Interrupted, UsageError
from stillhouse.sweep.failures import check_folder, folder_errors, interrupted_message, user_errors
from stillhouse.sweep.home.sweep_home import SweepHome


@pytest.fixture
def sweep_home(tmp_path: Path) -> SweepHome:
    """A sweep that was started."""
    made = SweepHome(tmp_path / "my home", "s")
    made.folder.mkdir(parents=True)
    made.write_spec({"name": "s"})
    return made


def test_an_interrupt_names_the_command_that_continues(sweep_home: SweepHome) -> None:
    with pytest.raises(Interrupted) as caught, user_errors(sweep_home):
        raise KeyboardInterrupt
    assert str(caught.value) == interrupted_message(sweep_home)
    assert str(caught.value).endswith(f"stillhouse resume s --home '{sweep_home.home}'")


def test_an_interrupt_before_anything_was_written_is_one_word(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"^interrupted$"), user_errors(SweepHome(tmp_path, "s")):
        raise KeyboardInterrupt


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_remedy(sweep_home: SweepHome, number: int) -> None:
    with pytest.raises(DiskFullError, match=r"stillhouse teachers prune.* stillhouse resume s"), user_errors(sweep_home):
        raise OSError(number, os.strerror(number), "/data/file")


def test_another_error_of_the_disk_names_its_file(sweep_home: SweepHome) -> None:
    with pytest.raises(InfrastructureError, match=r"^Input/output error \(/data/file\)$"), user_errors(sweep_home):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/file")


def test_an_error_without_a_file_names_the_sweeps_folder(sweep_home: SweepHome) -> None:
    with pytest.raises(InfrastructureError) as caught, user_errors(sweep_home):
        raise OSError("broken")
    assert str(caught.value) == f"broken ({sweep_home.folder})"


def test_errors_with_a_sentence_of_their_own_keep_it(sweep_home: SweepHome) -> None:
    for error in (InfrastructureError("the cluster is gone"), UsageError("no teacher 'a'")):
        with pytest.raises(type(error)) as caught, user_errors(sweep_home):
            raise error
        assert caught.value is error


def test_a_folder_that_was_removed_is_the_reason_of_what_fails(sweep_home: SweepHome) -> None:
    check_folder(sweep_home)
    (sweep_home.folder / "spec.json").unlink()
    with pytest.raises(InfrastructureError, match="was removed while the sweep ran"), folder_errors(sweep_home):
        raise FileNotFoundError(2, "No such file or directory", str(sweep_home.folder / "ledger"))


def test_an_error_of_a_sweep_that_is_still_there_stays_as_it_is(sweep_home: SweepHome) -> None:
    with pytest.raises(FileNotFoundError), folder_errors(sweep_home):
        raise FileNotFoundError(2, "No such file or directory")
