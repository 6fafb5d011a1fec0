"""Nodes without the home's folder: what they read and write of it through its keeper, and what they keep of their own."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stillhouse.durable import Damaged, bytes_hash
from stillhouse.home_access import home_address, keeper
from stillhouse.home_access import node_home as homes
from stillhouse.home_access.home_address import shared_home
from stillhouse.home_access.keeper import Keeper, WriterGoneError
from stillhouse.home_access.keeper_link import KeeperLink
from stillhouse.home_access.node_home import NodeHome
from stillhouse.home_access.remote_store import RemoteStore
from stillhouse.knowledge.fill_log import count_fills, fill_log
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View

IDENTITY = {"teacher": {"weights": "w"}, "view": 0}
ROWS = 700
VALUES = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)


class DirectLink(KeeperLink):
    """A link to a keeper in this process."""

    def __init__(self, target: Keeper, owner: str) -> None:
        self._target = target
        self._owner = owner
        self.calls: list[str] = []

    def caller(self) -> str:
        return self._owner

    def call(self, method: str, *arguments: Any) -> Any:
        self.calls.append(method)
        return getattr(self._target, method)(*arguments)


@dataclass
class Home:
    """A home with its keeper, and two nodes that do not see it."""

    store: KnowledgeStore
    keeper: Keeper
    first: RemoteStore
    second: RemoteStore
    link: DirectLink


@pytest.fixture
def home(tmp_path: Path) -> Home:
    kept = Keeper(str(tmp_path / "home"))
    link = DirectLink(kept, "first")
    return Home(
        KnowledgeStore(tmp_path / "home" / "knowledge"),
        kept,
        RemoteStore(tmp_path / "first", link),
        RemoteStore(tmp_path / "second", DirectLink(kept, "second")),
        link,
    )


def writer(store: KnowledgeStore) -> Any:
    return store.writer(IDENTITY, rows=ROWS, shape=(3,), dtype="float32", counted=lambda _token: True)


def fill(store: KnowledgeStore, rows: NDArray[np.int64] | None = None) -> None:
    rows = np.arange(ROWS) if rows is None else rows
    with writer(store) as open_writer:
        open_writer.put(rows, VALUES[rows])
        open_writer.commit()
        if not open_writer.missing.any():
            open_writer.seal()


def wait_for(store: KnowledgeStore, there: Callable[[View], bool], identity: Mapping[str, Any] = IDENTITY) -> View:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            view = store.follow(identity)
            if there(view):
                return view
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    raise AssertionError("the copy does not come")


def all_of(view: View) -> NDArray[np.float32]:
    return view.gather(torch.arange(ROWS)).numpy()


def test_a_sealed_view_is_copied_once_to_a_node_and_equal_bit_by_bit(home: Home) -> None:
    fill(home.store)
    np.testing.assert_array_equal(all_of(wait_for(home.first, lambda view: view.complete)), VALUES)
    wait_for(home.first, lambda _view: home.first.is_sealed(IDENTITY))
    asked = len(home.link.calls)
    np.testing.assert_array_equal(all_of(home.first.follow(IDENTITY)), VALUES)
    assert len(home.link.calls) == asked, "the node reads its own copy"


def test_rows_can_be_read_on_a_node_before_the_view_is_sealed_at_home(home: Home) -> None:
    early = np.arange(5, 300)
    fill(home.store, early)
    view = wait_for(home.first, lambda view: view.ready(torch.from_numpy(early)))
    assert not view.complete
    np.testing.assert_array_equal(view.gather(torch.from_numpy(early)).numpy(), VALUES[early])
    fill(home.store, np.setdiff1d(np.arange(ROWS), early))
    np.testing.assert_array_equal(all_of(wait_for(home.first, lambda view: view.complete)), VALUES)


def test_a_view_filled_from_a_node_lies_at_home_and_reaches_another_node(home: Home) -> None:
    fill(home.first)
    np.testing.assert_array_equal(all_of(home.store.open(IDENTITY)), VALUES)
    np.testing.assert_array_equal(home.first.open(IDENTITY).gather(torch.tensor([3, 1])).numpy(), VALUES[[3, 1]])
    np.testing.assert_array_equal(all_of(wait_for(home.second, lambda view: view.complete)), VALUES)


def test_what_a_filler_had_committed_when_its_node_died_stays_and_its_successor_is_not_held_up(home: Home) -> None:
    dead = writer(home.first)
    dead.put(np.arange(100), VALUES[:100])
    dead.commit("one")
    home.keeper.note_fill('{"teacher": "w", "rows": 100, "bytes": 1, "seconds": 0, "stretch": "one"}')
    dead.put(np.arange(100, 150), VALUES[100:150])
    # Restarted elsewhere, under its own name.
    with writer(home.first) as successor:
        assert np.array_equal(np.flatnonzero(~successor.missing), np.arange(100))
        with pytest.raises(WriterGoneError):
            dead.commit("two")


def test_a_stretch_that_was_written_but_not_counted_is_made_again(home: Home) -> None:
    with writer(home.first) as dead:
        dead.put(np.arange(100), VALUES[:100])
        dead.commit("uncounted")
    with writer(home.first) as successor:
        assert successor.missing.all()


def test_a_writer_that_is_heard_of_no_more_gives_way(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_IDLE_S", 0.0)
    writer(home.first)
    with writer(home.second) as other:
        assert other.missing.all()


def test_repeating_a_call_whose_answer_was_lost_changes_nothing(home: Home) -> None:
    line = '{"teacher": "w", "rows": 9, "bytes": 1, "seconds": 0, "stretch": "s"}'
    for _ in range(2):
        home.keeper.note_fill(line)
    assert count_fills(home.store.root, "w")["samples"] == 9
    session, _, _ = home.keeper.open_writer("me", IDENTITY, {"rows": ROWS, "shape": (3,), "dtype": "float32"})
    checksum = bytes_hash(VALUES[:9].tobytes())
    for _ in range(2):
        assert home.keeper.write(session, np.arange(9), VALUES[:9], checksum, "s") == 9 * 12
    home.keeper.close(session)
    home.keeper.close(session)
    assert len(list(home.store.folder(IDENTITY).glob("journal-*"))) == 1


@pytest.mark.parametrize("place", ["first", "home"])
def test_a_flipped_byte_in_a_copy_or_at_home_is_never_read(home: Home, place: str) -> None:
    fill(home.store)
    wait_for(home.first, lambda _view: home.first.is_sealed(IDENTITY))
    store = home.store if place == "home" else home.first
    (part,) = store.folder(IDENTITY).glob("part-*")
    middle = part.stat().st_size // 2
    # In place, as a disk does: a file that others may have mapped must not be cut.
    with part.open("r+b") as file:
        file.seek(middle)
        flipped = bytes([file.read(1)[0] ^ 1])
        file.seek(middle)
        file.write(flipped)
    if place == "home":
        with pytest.raises(Damaged):
            home.first.open(IDENTITY)
        with pytest.raises(Damaged):
            wait_for(home.second, lambda view: view.complete)
        home.first.unseal(IDENTITY)
        fill_missing = np.flatnonzero(_missing(home.first))
        fill(home.first, fill_missing)
    np.testing.assert_array_equal(all_of(wait_for(home.first, lambda view: view.complete)), VALUES)
    np.testing.assert_array_equal(all_of(wait_for(home.second, lambda view: view.complete)), VALUES)


def test_what_a_copier_met_is_reported_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second copier that met the same error would raise it after it was resolved."""
    fill(home.store)
    (part,) = home.store.folder(IDENTITY).glob("part-*")
    part.unlink()
    part.write_bytes(b"")
    asked, go, copies = [0], threading.Event(), home.first._copies
    call, follow = home.link.call, copies.follow

    def waiting(method: str, *arguments: Any) -> Any:
        asked[0] += method == "layout"
        assert go.wait(20)
        return call(method, *arguments)

    def slow(identity: Any) -> View:
        for copier in home.first._copying.values():
            go.set()
            copier.join(20)
        return follow(identity)

    monkeypatch.setattr(home.link, "call", waiting)
    monkeypatch.setattr(copies, "follow", slow)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            home.first.follow(IDENTITY)
    with pytest.raises(Damaged):
        home.first.follow(IDENTITY)
    assert asked == [1]


def test_a_copy_that_is_sealed_while_somebody_looks_at_it_is_not_copied_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(home.store)
    looked, copies = threading.Event(), home.first._copies
    call, follow = home.link.call, copies.follow

    def waiting(method: str, *arguments: Any) -> Any:
        assert method != "rows" or looked.wait(20)
        return call(method, *arguments)

    def slow(identity: Any) -> View:
        view = follow(identity)
        looked.set()
        join_copiers()
        return view

    def join_copiers() -> None:
        for copier in home.first._copying.values():
            copier.join(20)

    monkeypatch.setattr(home.link, "call", waiting)
    monkeypatch.setattr(copies, "follow", slow)
    wait_for(home.first, lambda _view: True)
    join_copiers()
    assert home.first.is_sealed(IDENTITY)
    assert home.link.calls.count("layout") == 1


def _missing(store: KnowledgeStore) -> NDArray[np.bool_]:
    with writer(store) as looked:
        return np.array(looked.missing)


def test_of_two_processes_of_a_node_one_copies_and_the_other_reads(home: Home, tmp_path: Path) -> None:
    fill(home.store, np.arange(400))
    neighbour_link = DirectLink(home.keeper, "neighbour")
    neighbour = RemoteStore(tmp_path / "first", neighbour_link)
    early = torch.arange(400)
    wait_for(home.first, lambda view: view.ready(early))
    wait_for(neighbour, lambda view: view.ready(early))
    assert "rows" not in neighbour_link.calls
    fill(home.store, np.arange(400, ROWS))
    wait_for(neighbour, lambda view: view.complete)


def test_copies_that_were_not_read_for_longest_make_room_for_new_ones(home: Home, tmp_path: Path) -> None:
    """There is room for two and a half."""
    views = [IDENTITY | {"view": number} for number in range(3)]
    for identity in views:
        with home.store.writer(identity, rows=ROWS, shape=(3,), dtype="float32") as open_writer:
            open_writer.put(np.arange(ROWS), VALUES)
            open_writer.commit()
            open_writer.seal()
    room = sum(entry["bytes"] for entry in home.store.entries()) * 5 // 6
    small = RemoteStore(tmp_path / "small", home.link, max_bytes=room)

    def read(number: int) -> None:
        wait_for(small, lambda _view: small.is_sealed(views[number]), views[number])
        np.testing.assert_array_equal(all_of(small.follow(views[number])), VALUES)
        time.sleep(0.02)

    for number in (0, 1, 0, 2):
        read(number)
    assert [small.is_sealed(identity) for identity in views] == [True, False, True]
    read(1)
    assert [small.is_sealed(identity) for identity in views] == [False, True, True]


@pytest.mark.parametrize(
    "place",
    [
        "../secret",
        "spec.json",
        "sweeps/../ledger/a.record",
        "sweeps/x/spec.json",
        "teachers/../card",
        "/etc/passwd",
        "knowledge/fills.jsonl",
    ],
)
def test_the_keeper_gives_nothing_but_what_trials_and_teachers_need(home: Home, place: str) -> None:
    for method, rest in (("fetch", ()), ("keep", (b"",)), ("drop", ())):
        with pytest.raises(ValueError, match="does not serve"):
            getattr(home.keeper, method)(place, *rest)


@pytest.fixture
def apart(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> NodeHome:
    monkeypatch.setenv(home_address.COMMON_VARIABLE, "0")
    monkeypatch.setenv(home_address.SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    monkeypatch.setattr(homes, "KeeperLink", lambda _name: home.link)
    return NodeHome(shared_home(tmp_path / "home"))


def test_files_go_to_the_home_and_come_back(apart: NodeHome, tmp_path: Path) -> None:
    record = apart.here(tmp_path / "home" / "sweeps" / "s" / "ledger" / "k.record")
    assert record.is_relative_to(tmp_path / "scratch")
    record.parent.mkdir(parents=True)
    record.write_bytes(b"done")
    apart.push(record)
    assert apart.there(record).read_bytes() == b"done"
    apart.there(record).write_bytes(b"more")
    apart.pull(record)
    assert record.read_bytes() == b"more"
    apart.drop(record)
    apart.pull(record)
    assert not record.exists(), "what is gone at home is gone here"


def test_a_checkpoint_is_dropped_with_its_folder(apart: NodeHome, tmp_path: Path) -> None:
    checkpoint = apart.folder / "sweeps" / "s" / "trials" / "k" / "checkpoint"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half")
    apart.push(checkpoint)
    apart.drop(checkpoint)
    assert not apart.there(checkpoint).parent.exists()


def test_a_node_that_shares_the_home_uses_the_folder_itself(tmp_path: Path) -> None:
    shared = NodeHome(shared_home(tmp_path))
    assert shared.folder == tmp_path
    assert shared.note_fill is None


def test_the_log_of_fills_is_the_homes(home: Home) -> None:
    home.keeper.note_fill('{"teacher": "w", "rows": 9, "bytes": 1, "seconds": 0, "stretch": "s"}')
    assert fill_log(home.store.root).exists()
    assert threading.active_count() < 50
