"""The ledger: what is written is read, what is damaged is named, nothing else is touched."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.durable import write_checked
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.home.ledger import Ledger

MakeRecord = Callable[..., TrialRecord]


def test_a_record_comes_back_as_it_was_written(tmp_path: Path, make_record: MakeRecord) -> None:
    ledger = Ledger(tmp_path / "ledger")
    records = {key: make_record(key, (0.25, 0.5), weights_hash="ab", device="cuda") for key in ("b", "a")}
    for record in records.values():
        ledger.write(record)
    assert ledger.read("a") == records["a"]
    assert list(ledger.keys()) == ["a", "b"]
    assert ledger.read_all() == (records, [])


def test_an_empty_ledger_has_no_records(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "nowhere")
    assert ledger.read("a") is None
    assert ledger.read_all() == ({}, [])


@pytest.mark.parametrize("harm", ["cut", "garbled", "empty", "another trial's", "another version's"])
def test_a_damaged_record_is_named_and_the_others_stay(tmp_path: Path, make_record: MakeRecord, harm: str) -> None:
    ledger = Ledger(tmp_path)
    for key in ("a", "b"):
        ledger.write(make_record(key))
    path = tmp_path / "a.record"
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[:-1])
    elif harm == "garbled":
        path.write_bytes(content.replace(b"finished", b"finishee"))
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "another trial's":
        path.write_bytes((tmp_path / "b.record").read_bytes())
    else:
        write_checked(path, b'{"trial": {"key": "a"}, "score": 1}')
    whole, damaged = ledger.read_all()
    assert damaged == ["a"]
    assert set(whole) == {"b"}
    ledger.set_aside("a")
    assert ledger.read_all()[1] == []


def test_a_full_disk_writes_no_half_record(tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Ledger(tmp_path).write(make_record())
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_beside_a_record_is_not_read(tmp_path: Path, make_record: MakeRecord) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(make_record())
    (tmp_path / ".b.record.77.abcd.part").write_bytes(b"half")
    assert list(ledger.keys()) == ["a"]
