"""Views in the store: gathered rows are those that were written, whatever happened to the disk."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillhouse.durable import Damaged, write_checked
from stillhouse.errors import DiskFullError
from stillhouse.knowledge import layout as layout_module
from stillhouse.knowledge import view as view_module
from stillhouse.knowledge import writer as writer_module
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import NotReady
from stillhouse.knowledge.writer import ViewWriter, hold

IDENTITY = {"teacher": "abc", "view": 0}
ROWS, BLOCK_ROWS, PART_ROWS = 10, 2, 4


@pytest.fixture
def store(tmp_path: Path) -> KnowledgeStore:
    return KnowledgeStore(tmp_path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 8 bytes: blocks of two, parts of four, so ten rows are three parts."""
    monkeypatch.setattr(layout_module, "_BLOCK_BYTES", 8 * BLOCK_ROWS)
    monkeypatch.setattr(layout_module, "_PART_BYTES", 8 * PART_ROWS)


def numbers(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    """Every value once, and none is 0: a misplaced row is visible, and so is one that was never written."""
    return 1 + np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def writer_of(store: KnowledgeStore, identity: dict[str, Any] = IDENTITY, **options: Any) -> ViewWriter:
    defaults: dict[str, Any] = {"rows": ROWS, "shape": (2,), "dtype": "float32"}
    return store.writer(identity, **defaults | options)


def write(writer: ViewWriter, rows: NDArray[Any], *stretches: list[int], token: str = "") -> None:
    for stretch in stretches:
        writer.put(np.array(stretch), rows[stretch])
        writer.commit(token)


def fill(store: KnowledgeStore, rows: NDArray[Any], identity: dict[str, Any] = IDENTITY) -> None:
    with store.writer(identity, rows=len(rows), shape=rows.shape[1:], dtype=rows.dtype.name) as writer:
        missing = np.flatnonzero(writer.missing)
        writer.put(missing, rows[missing])
        writer.commit()
        writer.seal()


def parts_of(store: KnowledgeStore, identity: dict[str, Any] = IDENTITY) -> list[Path]:
    return sorted(store.folder(identity).glob("part-*"))


def journal_of(store: KnowledgeStore) -> Path:
    (journal,) = store.folder(IDENTITY).glob("journal-*")
    return journal


def all_rows(store: KnowledgeStore, identity: dict[str, Any] = IDENTITY) -> NDArray[Any]:
    view = store.open(identity)
    rows: NDArray[Any] = view.gather(torch.arange(view.rows)).numpy()
    return rows


def missing_in(store: KnowledgeStore, **options: Any) -> list[int]:
    """What a new attempt would have to compute."""
    with writer_of(store, **options) as writer:
        missing: list[int] = np.flatnonzero(writer.missing).tolist()
        return missing


# What is read is what was written


@pytest.mark.parametrize("shape", [(), (3,), (1,), (2, 3, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gathered_rows_are_those_that_were_written(store: KnowledgeStore, shape: tuple[int, ...], dtype: str) -> None:
    rows = numbers(ROWS, *shape, dtype=dtype)
    fill(store, rows)
    gathered = store.open(IDENTITY).gather(torch.arange(ROWS))
    assert gathered.dtype == torch.from_numpy(rows).dtype
    assert np.array_equal(gathered.numpy(), rows)


@given(
    rows=st.integers(1, 30),
    block_rows=st.integers(1, 8),
    part_blocks=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 9), max_size=5),
    seed=st.integers(0, 99),
    indices=st.lists(st.integers(0, 10_000), max_size=40),
)
@settings(max_examples=40, deadline=None)
def test_rows_filled_in_any_order_and_stretches_are_gathered_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    block_rows: int,
    part_blocks: int,
    cuts: list[int],
    seed: int,
    indices: list[int],
) -> None:
    store = KnowledgeStore(tmp_path_factory.mktemp("store"))
    written = numbers(rows, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "_BLOCK_BYTES", 8 * block_rows)
        patch.setattr(layout_module, "_PART_BYTES", 8 * block_rows * part_blocks)
        with writer_of(store, rows=rows) as writer:
            order = np.random.default_rng(seed).permutation(rows)
            write(writer, written, *(part.tolist() for part in np.split(order, np.minimum(np.cumsum(cuts), rows)) if len(part)))
            writer.seal()
    wanted = torch.tensor([index % rows for index in indices], dtype=torch.int64)
    assert np.array_equal(store.open(IDENTITY).gather(wanted).numpy(), written[wanted.numpy()])


@pytest.mark.usefixtures("small")
def test_a_sealed_view_is_plain_arrow_files_of_one_batch_in_index_order(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    fill(store, rows)
    tables = [pa.ipc.open_file(str(path)) for path in parts_of(store)]
    assert [table.num_record_batches for table in tables] == [1, 1, 1]
    columns = [table.get_batch(0).column("knowledge") for table in tables]
    assert all(column.type == pa.fixed_shape_tensor(pa.float32(), (2,)) for column in columns)
    assert np.array_equal(np.concatenate([column.to_numpy_ndarray() for column in columns]), rows)


def test_a_view_of_a_gibibyte_or_less_is_one_file() -> None:
    layout = layout_module.Layout.make(identity={}, rows=1_281_167, shape=(200,), dtype="float32")
    assert layout.num_parts == 1
    larger = layout_module.Layout.make(identity={}, rows=50_000, shape=(64, 8, 8), dtype="float32")
    # 16 KiB a row: 2048 rows are 32 MiB, 65,536 would be 1 GiB.
    assert (larger.block_rows, larger.part_rows, larger.num_parts) == (2048, 65536, 1)
    assert layout_module.Layout.make(identity={}, rows=70_000, shape=(64, 8, 8), dtype="float32").num_parts == 2


def test_changing_gathered_rows_does_not_change_the_view(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 3)
    fill(store, rows)
    view = store.open(IDENTITY)
    view.gather(torch.arange(ROWS)).fill_(7)
    assert np.array_equal(view.gather(torch.arange(ROWS)).numpy(), rows)


def test_a_row_of_the_wrong_shape_is_refused(store: KnowledgeStore) -> None:
    with writer_of(store) as writer, pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        writer.put(np.arange(4), numbers(4, 3))


# A view that is being filled


@pytest.mark.usefixtures("small")
def test_rows_are_read_while_others_are_still_missing(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        view = store.follow(IDENTITY)
        assert not view.ready(torch.tensor([3]))
        write(writer, rows, [9, 3, 0])
        assert view.ready(torch.tensor([0, 9]))
        assert np.array_equal(view.gather(torch.tensor([9, 0, 3, 9])).numpy(), rows[[9, 0, 3, 9]])
        assert not view.complete
        write(writer, rows, [1, 2, 4], [5, 6, 7, 8])
        assert view.ready(torch.arange(ROWS))
        assert view.complete
    assert np.array_equal(view.gather(torch.arange(ROWS)).numpy(), rows)


@pytest.mark.usefixtures("small")
def test_a_row_that_is_not_durable_cannot_be_read(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        view = store.follow(IDENTITY)
        write(writer, rows, [0, 1])
        writer.put(np.array([2]), rows[[2]])
        assert view.ready(torch.tensor([0, 1]))
        for wanted in ([2], [0, 2], [0, 9]):
            assert not view.ready(torch.tensor(wanted))
            with pytest.raises(NotReady):
                view.gather(torch.tensor(wanted))


def test_a_view_whose_filling_has_not_begun_does_not_exist(store: KnowledgeStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.follow(IDENTITY)


@pytest.mark.usefixtures("small")
def test_a_view_is_sealed_only_when_all_of_it_is_durable(store: KnowledgeStore) -> None:
    with writer_of(store) as writer:
        write(writer, numbers(ROWS, 2), [0, 1, 2])
        assert not store.is_sealed(IDENTITY)
        with pytest.raises(FileNotFoundError):
            store.open(IDENTITY)
        with pytest.raises(AssertionError, match="sealed"):
            writer.seal()


@pytest.mark.usefixtures("small")
def test_journals_of_several_writers_are_read_as_one(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        write(writer, rows, [0, 1, 2, 3])
        view = store.follow(IDENTITY)
        assert view.ready(torch.arange(4))
        own = journal_of(store)
        other = own.with_name("journal-other")
        shutil.copy(own, other)
        write(writer, rows, [4, 5])
        lines = own.read_bytes().splitlines(keepends=True)
        own.write_bytes(lines[0])
        other.write_bytes(lines[0] + lines[1])
        assert view.ready(torch.tensor([5]))


def test_a_view_has_one_writer_at_a_time(store: KnowledgeStore) -> None:
    with writer_of(store):
        with pytest.raises(BlockingIOError):
            hold(store.folder(IDENTITY), wait=False)
        assert not store.remove(store.key(IDENTITY)), "a view that is being filled is not removed"
    hold(store.folder(IDENTITY), wait=False).close()
    assert store.remove(store.key(IDENTITY))


def test_disk_space_is_allocated_before_the_first_row(store: KnowledgeStore) -> None:
    with writer_of(store, rows=100_000):
        (part,) = parts_of(store)
        assert part.stat().st_size >= 800_000
        assert 512 * part.stat().st_blocks >= 800_000


# Crashes


@pytest.mark.usefixtures("small")
def test_an_interrupted_filling_continues(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store, order=[5, 1]) as writer:
        write(writer, rows, [7, 1, 4], [0, 9])
    with writer_of(store, order=[6, 0]) as writer:
        assert np.flatnonzero(writer.missing).tolist() == [2, 3, 5, 6, 8]
        assert writer.order == [5, 1], "the order that the filling began with"
        write(writer, rows, [2, 3, 5, 6, 8])
        writer.seal()
    assert np.array_equal(all_rows(store), rows)


@pytest.mark.usefixtures("small")
def test_values_without_a_line_in_the_journal_are_computed_again(store: KnowledgeStore) -> None:
    """A death between data and journal."""
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        write(writer, rows, [0, 1])
        writer.put(np.array([2, 3]), rows[[2, 3]])
    assert missing_in(store) == [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("left", [0, 1, 30, -1])
def test_a_torn_last_line_costs_only_its_stretch(store: KnowledgeStore, left: int) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        write(writer, rows, [5, 4, 3], [0, 1])
    journal = journal_of(store)
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + second[:left])
    view = store.follow(IDENTITY)
    assert view.ready(torch.tensor([3, 4, 5]))
    assert not view.ready(torch.tensor([0]))
    assert missing_in(store) == [0, 1, 2, 6, 7, 8, 9]


@pytest.mark.usefixtures("small")
def test_a_garbled_line_of_the_journal_is_ignored(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        write(writer, rows, [0, 1], [2, 3])
    journal = journal_of(store)
    journal.write_bytes(journal.read_bytes().replace(b"[2,4]", b"[4,6]"))
    assert not store.follow(IDENTITY).ready(torch.tensor([4]))
    assert missing_in(store) == [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.usefixtures("small")
def test_a_line_of_the_journal_whose_values_are_missing_is_ignored(store: KnowledgeStore) -> None:
    """A disk that lost the values but kept the line, or a byte that flipped before sealing."""
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        write(writer, rows, [0, 1], [5, 2])
    flip(parts_of(store)[1], of=numbers(ROWS, 2)[5])
    view = store.follow(IDENTITY)
    assert view.ready(torch.tensor([0, 1]))
    assert not view.ready(torch.tensor([2]))
    assert missing_in(store) == [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.usefixtures("small")
def test_a_stretch_that_was_not_counted_is_computed_again(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        write(writer, rows, [0, 1], token="counted")
        write(writer, rows, [2, 3], token="lost")
    assert missing_in(store, counted=lambda token: token == "counted") == [2, 3, 4, 5, 6, 7, 8, 9]


def full(*_arguments: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("small")
def test_a_full_disk_at_the_beginning_is_one_error_and_frees_the_space(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def third_is_full(descriptor: int, offset: int, length: int) -> None:
        calls.append(length)
        if len(calls) == 3:
            full()

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", third_is_full)
        with pytest.raises(DiskFullError, match="no space for 80 bytes") as caught:
            writer_of(store)
    assert "\n" not in str(caught.value)
    assert parts_of(store) == []
    hold(store.folder(IDENTITY), wait=False).close()
    rows = numbers(ROWS, 2)
    fill(store, rows)
    assert np.array_equal(all_rows(store), rows)


def half(write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    return lambda descriptor, content: write(descriptor, content[: len(content) // 2])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("call", "harm"), [("fsync", full), ("write", full), ("write", half(os.write))])
def test_a_full_disk_at_the_journal_is_one_error_and_costs_the_stretch(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch, call: str, harm: Any
) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        write(writer, rows, [0, 1])
        writer.put(np.array([2, 3]), rows[[2, 3]])
        with monkeypatch.context() as patch:
            patch.setattr(os, call, harm)
            with pytest.raises(DiskFullError, match="no space for 16 bytes") as caught:
                writer.commit()
    assert "\n" not in str(caught.value)
    assert missing_in(store) == [2, 3, 4, 5, 6, 7, 8, 9]


# Damage


def flip(path: Path, *, of: NDArray[Any]) -> None:
    """Flips a bit of the row that holds these values, in place, as a disk does: a mapped file must not be truncated."""
    content = path.read_bytes()
    place = content.index(of.tobytes())
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([content[place] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("row", [0, 5, 9])
def test_a_flipped_bit_of_a_sealed_view_is_noticed_and_costs_only_its_block(store: KnowledgeStore, row: int) -> None:
    rows = numbers(ROWS, 2)
    fill(store, rows)
    flip(parts_of(store)[row // PART_ROWS], of=rows[row])
    with pytest.raises(Damaged, match="part-"):
        store.open(IDENTITY)
    store.unseal(IDENTITY)
    first = BLOCK_ROWS * (row // BLOCK_ROWS)
    assert missing_in(store) == [first, first + 1]
    fill(store, rows)
    assert np.array_equal(all_rows(store), rows)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("harm", [cut, empty, Path.unlink])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_truncated_part_is_noticed_and_costs_only_its_rows(store: KnowledgeStore, harm: Any, number: int) -> None:
    rows = numbers(ROWS, 2)
    fill(store, rows)
    harm(parts_of(store)[number])
    with pytest.raises(Damaged, match=f"part-00{number}"):
        store.open(IDENTITY)
    store.unseal(IDENTITY)
    assert missing_in(store) == list(range(PART_ROWS * number, min(PART_ROWS * (number + 1), ROWS)))
    fill(store, rows)
    assert np.array_equal(all_rows(store), rows)


def test_a_part_with_any_garbled_byte_is_refused_or_reads_the_same(store: KnowledgeStore) -> None:
    """Also in Arrow's metadata, whose lengths and offsets must not be trusted then."""
    rows = numbers(ROWS, 2)
    fill(store, rows)
    (part,) = parts_of(store)
    whole = part.read_bytes()
    refused = 0
    for place in range(len(whole)):
        for bits in (0x01, 0x40, 0xFF):
            garbled = bytearray(whole)
            garbled[place] ^= bits
            part.with_name("beside").write_bytes(garbled)
            part.with_name("beside").replace(part)
            store.distrust(IDENTITY)
            try:
                assert np.array_equal(all_rows(store), rows)
            except Damaged:
                refused += 1
    assert refused > 3 * rows.nbytes, "every hit of a value, and more"


@pytest.mark.usefixtures("small")
def test_a_foreign_part_is_refused_whether_or_not_it_has_the_same_shape(store: KnowledgeStore) -> None:
    rows = numbers(ROWS, 2)
    for other in (numbers(ROWS, 5), 7 * rows):
        identity = {"other": other.shape[1]}
        fill(store, rows)
        fill(store, other, identity)
        shutil.copy(parts_of(store, identity)[1], parts_of(store)[1])
        with pytest.raises(Damaged, match="part-001"):
            store.open(IDENTITY)
        store.unseal(IDENTITY)
        assert missing_in(store) == [4, 5, 6, 7]
        fill(store, rows)
        assert np.array_equal(all_rows(store), rows)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("harm", [cut, empty, lambda path: path.write_bytes(path.read_bytes().replace(b"abc", b"abd"))])
def test_a_damaged_manifest_is_noticed_and_sealing_again_needs_no_row(store: KnowledgeStore, harm: Any) -> None:
    rows = numbers(ROWS, 2)
    fill(store, rows)
    harm(store.folder(IDENTITY) / "manifest")
    with pytest.raises(Damaged):
        store.open(IDENTITY)
    store.unseal(IDENTITY)
    assert missing_in(store) == []
    fill(store, rows)
    assert np.array_equal(all_rows(store), rows)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("harm", [cut, empty, Path.unlink])
def test_a_filling_without_its_layout_begins_again(store: KnowledgeStore, harm: Any) -> None:
    rows = numbers(ROWS, 2)
    with writer_of(store) as writer:
        write(writer, rows, [0, 1])
    harm(store.folder(IDENTITY) / "layout")
    with pytest.raises((Damaged, FileNotFoundError)):
        store.follow(IDENTITY)
    assert missing_in(store) == list(range(ROWS))


@pytest.mark.usefixtures("small")
def test_a_filling_of_another_shape_begins_again(store: KnowledgeStore) -> None:
    with writer_of(store, shape=(3,)) as writer:
        write(writer, numbers(ROWS, 3), [0, 1])
    rows = numbers(ROWS, 2)
    fill(store, rows)
    assert np.array_equal(all_rows(store), rows)


@pytest.mark.usefixtures("small")
def test_a_process_compares_a_view_with_its_checksums_once_unless_its_files_change(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, numbers(ROWS, 2))
    view_module.distrust(store.folder(IDENTITY))
    compared = []

    def counting(rows: NDArray[Any]) -> str:
        compared.append(len(rows))
        return layout_module.block_checksum(rows)

    monkeypatch.setattr(view_module, "block_checksum", counting)
    for _ in range(2):
        KnowledgeStore(store.root).open(IDENTITY)
    assert compared == [2, 2, 2, 2, 2]
    store.distrust(IDENTITY)
    store.open(IDENTITY)
    assert len(compared) == 10


# Identities and housekeeping


def test_a_part_that_is_damaged_during_sealing_is_not_trusted(store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def harming(path: Path, content: bytes) -> None:
        write_checked(path, content)
        if path.name == "manifest":
            # Later than the last row by more than a tick of the file system's clock.
            time.sleep(0.05)
            flip(path.with_name("part-000.arrow"), of=numbers(ROWS, 2)[5])

    monkeypatch.setattr(writer_module, "write_checked", harming)
    fill(store, numbers(ROWS, 2))
    with pytest.raises(Damaged, match="checksum"):
        store.open(IDENTITY)


def test_another_identity_is_another_view(store: KnowledgeStore) -> None:
    fill(store, numbers(ROWS, 2))
    for other in ({**IDENTITY, "view": 1}, {**IDENTITY, "teacher": "abd"}, {**IDENTITY, "dtype": "float16"}):
        assert store.key(other) != store.key(IDENTITY)
        with pytest.raises(FileNotFoundError):
            store.open(other)


def test_a_folder_with_another_view_is_refused(store: KnowledgeStore) -> None:
    fill(store, numbers(ROWS, 2))
    other = {**IDENTITY, "view": 1}
    shutil.copytree(store.folder(IDENTITY), store.folder(other))
    with pytest.raises(Damaged, match="another identity"):
        store.open(other)


def test_a_file_written_by_a_newer_store_is_refused(store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, numbers(ROWS, 2))
    monkeypatch.setattr(layout_module, "STORE_VERSION", 3)
    with pytest.raises(Damaged, match="store version 2, this is 3"):
        store.open(IDENTITY)


def test_stored_views_are_listed(store: KnowledgeStore) -> None:
    fill(store, numbers(ROWS, 2))
    writer_of(store, {"view": 9}, rows=1, shape=()).close()
    (store.root / "fills.jsonl").write_text("{}\n")
    entries = {entry["key"]: entry for entry in store.entries()}
    assert entries.keys() == {store.key(IDENTITY), store.key({"view": 9})}
    assert entries[store.key(IDENTITY)]["sealed"]
    assert entries[store.key(IDENTITY)]["identity"] == IDENTITY
    assert entries[store.key(IDENTITY)]["bytes"] > ROWS * 2 * 4
    assert not entries[store.key({"view": 9})]["sealed"]
    assert entries[store.key({"view": 9})]["identity"] == {"view": 9}
    assert store.remove(store.key(IDENTITY))
    assert not store.is_sealed(IDENTITY)
    assert list(KnowledgeStore(store.root / "nowhere").entries()) == []


def test_views_that_others_remove_meanwhile_are_not_listed(store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that was replaced by another one, and a view that was evicted."""
    for number in range(2):
        fill(store, numbers(ROWS, 2), {"view": number})
    kept, gone = (store.folder({"view": number}) for number in range(2))
    (kept / "journal-replaced").symlink_to(kept / "nothing")
    listed = Path.iterdir

    def late(folder: Path) -> Any:
        found = list(listed(folder))
        if folder == store.root:
            shutil.rmtree(gone)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", late)
    assert [entry["identity"]["view"] for entry in store.entries()] == [0]


def test_pruning_removes_the_least_recently_used_views_first_and_spares_those_in_use(store: KnowledgeStore) -> None:
    for number in range(4):
        fill(store, np.zeros((4, 2), np.float32), {"view": number})
        for file in store.folder({"view": number}).iterdir():
            os.utime(file, (1000 + number, 1000 + number))
    store.open({"view": 0})  # the oldest is the one used last
    each = next(iter(store.entries()))["bytes"]
    removed = store.prune(keep_bytes=2 * each, spare={store.key({"view": 1})})
    assert [entry["identity"]["view"] for entry in removed] == [2, 3]
    assert store.is_sealed({"view": 0})
    assert store.is_sealed({"view": 1})
    assert store.prune(keep_bytes=2 * each) == []
