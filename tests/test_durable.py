"""Files that survive a crash: reading returns what was written, or raises an error."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from stillhouse.durable import (
    Damaged,
    bytes_hash,
    canonical_json,
    content_hash,
    read_checked,
    write_atomic,
    write_checked,
    write_json,
)


def full_disk(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_reading_a_checked_file_returns_its_payload(tmp_path: Path) -> None:
    for payload in (b"", b"\n", b"stillhouse1 x 1\n", bytes(range(256)) * 17):
        write_checked(tmp_path / "file", payload)
        assert read_checked(tmp_path / "file") == payload


def test_every_truncation_of_a_checked_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_checked(path, b"knowledge\n and more")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged, match="file"):
            read_checked(path)


def test_every_flipped_bit_of_a_checked_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_checked(path, b"payload")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            with pytest.raises(Damaged):
                read_checked(path)


def test_a_checked_file_with_additional_bytes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_checked(path, b"payload")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(Damaged, match="has 8 bytes, expected 7"):
        read_checked(path)


def test_a_missing_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_checked(tmp_path / "none")


def test_writing_makes_the_folders_it_needs(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "file", b"x")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that must hold for a crash at any point: the data synced, the rename, the folder synced."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        events.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomic(tmp_path / "file", b"x")
    assert events == ["sync file", "rename", "sync folder"]


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, "é"]}) == '{"a":[1.5,null,"é"],"b":1}'
    assert content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 1.5})


def test_canonical_json_refuses_what_json_cannot_represent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"loss": float("nan")})


def test_hashes_are_those_of_blake2b() -> None:
    # RFC 7693 gives blake2b-512 only; this is `b2sum -l 128` of "abc".
    assert bytes_hash(b"abc") == "cf4ab791c62b8d2b2109c90275287816"
    assert len(content_hash([], digits=16)) == 16


def test_json_for_people_is_indented_and_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": [1]})
    text = (tmp_path / "file.json").read_text()
    assert json.loads(text) == {"a": [1]}
    assert text.endswith("}\n")
    assert "\n  " in text


def test_a_file_name_that_is_no_utf_8_survives_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"/data/caf\xe9")
    write_json(tmp_path / "x.json", {"root": name})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"root": name}
    assert content_hash(name) != content_hash(os.fsdecode(b"/data/caf\xe8"))


def test_a_private_file_is_private_from_its_first_byte_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def record(descriptor: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)

    (tmp_path / "spec.json").write_text("{}")
    monkeypatch.setattr(os, "fsync", record)
    write_json(tmp_path / "spec.json", {"uri": "secret"}, private=True)
    assert modes[0] == 0o600
    assert (tmp_path / "spec.json").stat().st_mode & 0o777 == 0o600
