"""Checkpoints: what was saved or an error, and no code that runs."""

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.distill.checkpoint import load_checkpoint, save_checkpoint
from stillhouse.durable import Damaged, write_checked

STATE = {"epoch": 3, "curve": [{"loss": 0.5}], "weights": {"a": torch.arange(5.0)}, "name": "x", "none": None}


def test_a_checkpoint_gives_back_its_state(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", STATE)
    state = load_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(state.pop("weights")["a"], torch.arange(5.0))
    assert state == {key: value for key, value in STATE.items() if key != "weights"}


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "checkpoint")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garble(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize("harm", [cut, garble, lambda content: b"", lambda content: content + b"x"])
def test_a_harmed_checkpoint_is_noticed(tmp_path: Path, harm: Any) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(path, STATE)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(Damaged, match="checkpoint"):
        load_checkpoint(path)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    save_checkpoint(tmp_path / "saved", {"bomb": Bomb(target)})
    write_checked(tmp_path / "pickled", pickle.dumps(Bomb(target)))
    for name in ("saved", "pickled"):
        with pytest.raises(Damaged, match="is not a checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not target.exists()


@pytest.mark.parametrize("payload", [b"", b"hello", b"PK\x03\x04", pickle.dumps([1])[:-2]])
def test_a_whole_file_that_is_no_checkpoint_is_refused(tmp_path: Path, payload: bytes) -> None:
    write_checked(tmp_path / "checkpoint", payload)
    with pytest.raises(Damaged, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_checkpoint_of_something_else_than_a_state_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", [1, 2])  # type: ignore[arg-type]
    with pytest.raises(Damaged, match="it contains a list"):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save_checkpoint(tmp_path / "checkpoint", {"epoch": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "checkpoint", {"epoch": 2})
    assert load_checkpoint(tmp_path / "checkpoint") == {"epoch": 1}
