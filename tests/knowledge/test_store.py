"""Sealed views: what is gathered is what was written, whatever happened to the disk in between."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError
from stillhouse.knowledge.store import KnowledgeStore, SealedView, default_shard_rows

IDENTITY = {"teacher": "abc", "view": 0}
ROWS, SHARD_ROWS = 10, 4


@pytest.fixture
def store(tmp_path: Path) -> KnowledgeStore:
    return KnowledgeStore(tmp_path)


def numbers(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    """Every value once: a misplaced row shows."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def fill(store: KnowledgeStore, rows: NDArray[Any], identity: dict[str, Any] = IDENTITY, shard_rows: int = SHARD_ROWS) -> None:
    writer = store.writer(identity, rows=len(rows), shape=rows.shape[1:], dtype=rows.dtype.name, shard_rows=shard_rows)
    for first, last in list(writer.missing()):
        writer.write(first, rows[first:last])
    writer.seal()


def shards_of(store: KnowledgeStore) -> list[Path]:
    return sorted(store.folder(IDENTITY).glob("shard-*"))


@pytest.mark.parametrize("shape", [(), (3,), (1,), (2, 3, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_gathered_is_what_was_written(store: KnowledgeStore, shape: tuple[int, ...], dtype: str) -> None:
    rows = numbers(ROWS, *shape, dtype=dtype)
    fill(store, rows)
    gathered = store.open(IDENTITY).gather(torch.arange(ROWS))
    assert gathered.dtype == torch.from_numpy(rows).dtype
    assert np.array_equal(gathered.numpy(), rows)


@given(
    rows=st.integers(1, 30),
    shard_rows=st.integers(1, 31),
    indices=st.lists(st.integers(0, 10_000), max_size=40),
)
@settings(max_examples=40, deadline=None)
def test_any_indices_are_gathered_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, shard_rows: int, indices: list[int]
) -> None:
    store = KnowledgeStore(tmp_path_factory.mktemp("store"))
    written = numbers(rows, 2)
    fill(store, written, shard_rows=shard_rows)
    wanted = torch.tensor([index % rows for index in indices], dtype=torch.int64)
    assert np.array_equal(store.open(IDENTITY).gather(wanted).numpy(), written[wanted.numpy()])


def test_gathered_rows_may_be_written_to_without_touching_the_view(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 3)
    fill(store, rows, shard_rows=ROWS)
    view = store.open(IDENTITY)
    view.gather(torch.arange(ROWS)).fill_(7)
    assert np.array_equal(view.gather(torch.arange(ROWS)).numpy(), rows)


def test_a_view_that_is_not_sealed_is_not_there(store: KnowledgeStore) -> None:
    writer = store.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=SHARD_ROWS)
    writer.write(0, numbers(SHARD_ROWS, 2))
    assert not store.is_sealed(IDENTITY)
    with pytest.raises(FileNotFoundError):
        store.open(IDENTITY)
    with pytest.raises(AssertionError, match="sealed"):
        writer.seal()


def test_another_identity_is_another_view(store: KnowledgeStore) -> None:
    fill(store, numbers(ROWS, 2))
    for other in ({**IDENTITY, "view": 1}, {**IDENTITY, "teacher": "abd"}, {**IDENTITY, "dtype": "float16"}):
        assert store.key(other) != store.key(IDENTITY)
        with pytest.raises(FileNotFoundError):
            store.open(other)


def test_a_folder_that_holds_another_view_is_refused(store: KnowledgeStore) -> None:
    fill(store, numbers(ROWS, 2))
    other = {**IDENTITY, "view": 1}
    shutil.copytree(store.folder(IDENTITY), store.folder(other))
    with pytest.raises(Damaged, match="something else"):
        store.open(other)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, garble, empty, Path.unlink])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_harmed_shard_is_noticed_and_alone_made_again(store: KnowledgeStore, harm: Any, number: int) -> None:
    rows = numbers(ROWS, 2)
    fill(store, rows)
    harm(shards_of(store)[number])
    fresh = KnowledgeStore(store.root)
    with pytest.raises(Damaged, match="shard-"):
        fresh.open(IDENTITY)
    fresh.unseal(IDENTITY)
    writer = fresh.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=SHARD_ROWS)
    first = SHARD_ROWS * number
    assert list(writer.missing()) == [(first, min(first + SHARD_ROWS, ROWS))]
    writer.write(first, rows[first : first + SHARD_ROWS])
    writer.seal()
    assert np.array_equal(fresh.open(IDENTITY).gather(torch.arange(ROWS)).numpy(), rows)
    assert len(shards_of(store)) == 3


@pytest.mark.parametrize("harm", [cut, garble, empty])
def test_a_harmed_manifest_is_noticed_and_sealing_again_needs_no_shard(store: KnowledgeStore, harm: Any) -> None:
    rows = numbers(ROWS, 2)
    fill(store, rows)
    harm(store.folder(IDENTITY) / "manifest")
    with pytest.raises(Damaged):
        store.open(IDENTITY)
    store.unseal(IDENTITY)
    writer = store.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=SHARD_ROWS)
    assert list(writer.missing()) == []
    writer.seal()
    assert np.array_equal(store.open(IDENTITY).gather(torch.arange(ROWS)).numpy(), rows)


def test_a_foreign_file_in_the_place_of_a_shard_is_made_again(store: KnowledgeStore) -> None:
    """Whole by its checksum, but not these rows: of another shape, or no Arrow file at all."""
    fill(store, numbers(ROWS, 5), {"other": 1})
    foreign = next(store.folder({"other": 1}).glob("shard-000000000-*"))
    store.folder(IDENTITY).mkdir(parents=True)
    shutil.copy(foreign, store.folder(IDENTITY) / foreign.name)
    writer = store.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=SHARD_ROWS)
    assert next(writer.missing()) == (0, SHARD_ROWS)
    assert shards_of(store) == []


@pytest.mark.parametrize("name", ["shard-.arrow", "shard-x-y.arrow", "shard-000000099-00.arrow", "shard-1-2-3-4.arrow"])
def test_a_file_with_a_name_that_no_shard_has_does_not_stop_a_filling(store: KnowledgeStore, name: str) -> None:
    store.folder(IDENTITY).mkdir(parents=True)
    (store.folder(IDENTITY) / name).write_bytes(b"not a shard")
    rows = numbers(ROWS, 2)
    fill(store, rows)
    assert np.array_equal(store.open(IDENTITY).gather(torch.arange(ROWS)).numpy(), rows)


def test_an_attempt_with_other_shard_rows_begins_again(store: KnowledgeStore) -> None:
    writer = store.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=4)
    writer.write(4, numbers(4, 2))
    writer.write(8, numbers(2, 2))
    rows = numbers(ROWS, 2)
    fill(store, rows, shard_rows=3)
    assert np.array_equal(store.open(IDENTITY).gather(torch.arange(ROWS)).numpy(), rows)


def test_an_interrupted_filling_goes_on(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    first = store.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=SHARD_ROWS)
    first.write(4, rows[4:8])
    second = store.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=SHARD_ROWS)
    assert list(second.missing()) == [(0, 4), (8, 10)]


def test_a_row_of_the_wrong_shape_is_refused(store: KnowledgeStore) -> None:
    writer = store.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=SHARD_ROWS)
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        writer.write(0, numbers(4, 3))


def test_a_full_disk_is_one_sentence_and_leaves_no_part_of_a_shard(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rows = numbers(ROWS, 2)
    writer = store.writer(IDENTITY, rows=ROWS, shape=(2,), dtype="float32", shard_rows=SHARD_ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InfrastructureError, match="no room for") as caught:
            writer.write(0, rows[:4])
    assert "\n" not in str(caught.value)
    assert list(store.folder(IDENTITY).iterdir()) == []
    fill(store, rows)
    assert np.array_equal(store.open(IDENTITY).gather(torch.arange(ROWS)).numpy(), rows)


def test_a_file_written_by_a_newer_store_is_refused(store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, numbers(ROWS, 2))
    folder = store.folder(IDENTITY)
    monkeypatch.setattr("stillhouse.knowledge.store.STORE_VERSION", 2)
    with pytest.raises(Damaged, match="store version 1, this is 2"):
        SealedView(folder)
    assert store.folder(IDENTITY) != folder


def test_shards_are_of_about_32_mib() -> None:
    assert default_shard_rows((10,), "float32") == 65536  # 2.5 MiB: more rows would not be looked up quicker
    assert default_shard_rows((64, 32, 32), "float32") == 128  # 256 KiB a row
    assert default_shard_rows((64, 32, 32), "float16") == 256
    assert default_shard_rows((1 << 30,), "float32") == 1


def test_what_is_kept_is_listed(store: KnowledgeStore) -> None:
    fill(store, numbers(ROWS, 2))
    store.writer({"view": 9}, rows=1, shape=(), dtype="float32")
    (store.root / "fills.jsonl").write_text("{}\n")
    entries = {entry["key"]: entry for entry in store.entries()}
    assert entries.keys() == {store.key(IDENTITY), store.key({"view": 9})}
    assert entries[store.key(IDENTITY)]["sealed"]
    assert entries[store.key(IDENTITY)]["identity"] == IDENTITY
    assert entries[store.key(IDENTITY)]["bytes"] > ROWS * 2 * 4
    assert not entries[store.key({"view": 9})]["sealed"]
    store.remove(store.key(IDENTITY))
    assert not store.is_sealed(IDENTITY)
    assert list(KnowledgeStore(store.root / "nowhere").entries()) == []


def test_pruning_removes_the_longest_unused_views_first(store: KnowledgeStore) -> None:
    rows = np.zeros((4, 2), np.float32)
    for number in range(3):
        writer = store.writer({"view": number}, rows=4, shape=(2,), dtype="float32")
        writer.write(0, rows)
        writer.seal()
        for file in store.folder({"view": number}).iterdir():
            os.utime(file, (1000 + number, 1000 + number))
    store.open({"view": 0})  # the oldest is the one used last
    each = next(iter(store.entries()))["bytes"]
    removed = store.prune(keep_bytes=2 * each)
    assert [entry["identity"]["view"] for entry in removed] == [1]
    assert store.is_sealed({"view": 0})
    assert not store.is_sealed({"view": 1})
    assert store.prune(keep_bytes=2 * each) == []
