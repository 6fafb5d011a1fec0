"""Opening views that are sealed, being filled, damaged or not requested yet, and waiting for their rows."""

import dataclasses
import itertools
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from stillhouse.errors import DiskFullError, InfrastructureError, is_disk_full
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge import feature, logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.ticket import FillPlan, FillRequest, TeacherTicket
from stillhouse.teachers.view_opener import ViewOpener


class Failed:
    """The answer of an actor whose last filling failed."""

    def __init__(self, error: str | InfrastructureError) -> None:
        self.error = InfrastructureError(error) if isinstance(error, str) else error


class Filler:
    """An actor whose `request` fills some rows of a view of logits, all ones, at each call; or returns an error, or dies."""

    def __init__(self, store: Path, *steps: list[int] | Failed | Exception) -> None:
        self.store = KnowledgeStore(store)
        self.identity = view_identity({}, logits(), 3)
        self.steps = list(steps)
        self.asked: list[tuple[Any, ...]] = []

    def broadcast(self, method: str, *arguments: Any) -> Any:
        assert method == "request"
        self.asked.append(arguments)
        step = self.steps.pop(0) if self.steps else []
        if isinstance(step, Exception):
            raise step
        return step.error if isinstance(step, Failed) else self.fill(step)

    def fill(self, rows: list[int]) -> None:
        with self.store.writer(self.identity, rows=6, shape=(2,), dtype="float32") as writer:
            writer.put(np.array(rows, dtype=np.int64), np.ones((len(rows), 2), np.float32))
            writer.commit()
            if not writer.missing.any():
                writer.seal()


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticket: TeacherTicket) -> Callable[..., tuple[ViewOpener, Filler]]:
    """An opener whose clock goes on by a second whenever it sleeps."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda _seconds: now.__setitem__(0, now[0] + 1.0))

    def make(*steps: Any, **fields: Any) -> tuple[ViewOpener, Filler]:
        filler = Filler(tmp_path / "knowledge", *steps)
        at_home = dataclasses.replace(ticket, home=HomeAddress(path=str(tmp_path)), **fields)
        return ViewOpener(at_home, {"logits": logits()}, cast("ActorLink", filler)), filler

    return make


MakeOpener = Callable[..., tuple[ViewOpener, Filler]]


def test_a_view_is_opened_when_its_filling_has_begun_with_one_call(opener: MakeOpener) -> None:
    open_views, filler = opener([4, 0])
    view = open_views(3, None, (7, 1))["logits"]
    assert view.ready(torch.tensor([0, 4]))
    assert not view.ready(torch.tensor([1]))
    assert filler.asked == [(FillRequest(view=3, kinds=(logits(),), reading=(7, 1), sweep=""),)]


def test_a_request_names_all_that_the_plan_fills_the_view_with(opener: MakeOpener) -> None:
    """An actor that was restarted knows of no other trial, and must not forward the view once for each."""
    plan = FillPlan.make([(logits(), {3, 4}), (feature("relu1"), {4}), (feature("relu2"), {3})])
    open_views, filler = opener([4, 0], plan=pickle.loads(pickle.dumps(plan)))
    assert list(open_views(3)) == ["logits"]
    assert filler.asked[0][0].kinds == (logits(), feature("relu2"))


def test_a_sealed_view_needs_no_call(opener: MakeOpener) -> None:
    open_views, filler = opener()
    filler.fill([0, 1, 2, 3, 4, 5])
    assert open_views(3)["logits"].ready(torch.arange(6))
    assert filler.asked == []


def test_rows_that_do_not_arrive_are_requested_again_every_few_seconds(opener: MakeOpener) -> None:
    open_views, filler = opener([0], [1], Failed("no axis"), [2, 3, 4, 5])
    open_views(3)
    assert open_views.await_rows(torch.tensor([3]))["logits"].ready(torch.tensor([3]))
    assert len(filler.asked) == 4


def test_an_epoch_is_one_call_however_long_it_is_and_however_often_its_batches_wait(
    opener: MakeOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_views, filler = opener([0])
    open_views(3)
    tick, slept, rows = time.sleep, itertools.count(1), iter(range(1, 6))

    def sleep(seconds: float) -> None:
        tick(seconds)
        # Each row arrives just before the wait would repeat the request.
        if next(slept) % 5 == 0:
            filler.fill([next(rows)])

    for row in range(1, 6):
        for _ in range(100):
            tick(1.0)
        with monkeypatch.context() as patch:
            patch.setattr(time, "sleep", sleep)
            open_views.await_rows(torch.tensor([row]))
    assert len(filler.asked) == 1


def test_a_filling_that_fails_twice_is_one_sentence(opener: MakeOpener) -> None:
    open_views, _ = opener([0], Failed("ValueError: no such axis"), Failed("ValueError: no such axis"))
    open_views(3)
    with pytest.raises(InfrastructureError, match="teacher 'big' cannot fill view 3: ValueError: no such axis") as caught:
        open_views.await_rows(torch.tensor([3]))
    assert not is_disk_full(caught.value)


def test_a_filling_that_fails_for_a_full_disk_is_a_full_disk_for_the_trial_too(opener: MakeOpener) -> None:
    full = DiskFullError("another text")
    open_views, _ = opener([0], Failed(full), Failed(full))
    open_views(3)
    with pytest.raises(DiskFullError, match="teacher 'big' cannot fill view 3: another text"):
        open_views.await_rows(torch.tensor([3]))


def test_an_actor_that_is_lost_while_rows_are_awaited_is_an_error(opener: MakeOpener) -> None:
    open_views, _ = opener([0], InfrastructureError("did not answer for 120 s"))
    open_views(3)
    with pytest.raises(InfrastructureError, match="did not answer"):
        open_views.await_rows(torch.tensor([3]))


def test_files_that_were_made_anew_are_mapped_anew(opener: MakeOpener, tmp_path: Path) -> None:
    open_views, filler = opener([0])
    open_views(3)
    shutil.rmtree(filler.store.folder(filler.identity))
    filler.steps = [[0, 1, 2, 3, 4, 5]]
    assert open_views.await_rows(torch.tensor([3]))["logits"].gather(torch.tensor([3])).tolist() == [[1.0, 1.0]]


def test_a_damaged_view_is_reported_and_waited_for(opener: MakeOpener, monkeypatch: pytest.MonkeyPatch) -> None:
    open_views, filler = opener()
    filler.fill([0, 1, 2, 3, 4, 5])
    (filler.store.folder(filler.identity) / "part-000.arrow").write_bytes(b"")

    def mend(_method: str, *arguments: Any) -> None:
        filler.asked.append(arguments)
        filler.store.unseal(filler.identity)
        filler.fill([0, 1, 2, 3, 4, 5])

    monkeypatch.setattr(filler, "broadcast", mend)
    assert open_views(3)["logits"].ready(torch.arange(6))
    assert [request.damaged for (request,) in filler.asked] == [True]
