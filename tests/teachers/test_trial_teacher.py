"""The trial's side of the shared actor: what it waits for and what it does not. Ray itself is stood in for."""

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
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError

from stillhouse.errors import DiskFullError, InfrastructureError, is_disk_full
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.ray_process import ACTOR_TIMEOUT_S
from stillhouse.knowledge import feature, logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.top_k import TopK
from stillhouse.models.weights import save_weights
from stillhouse.teachers import trial_teacher as client_module
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.call_queue import QueueFull
from stillhouse.teachers.definition import TeacherDefinition, view_identity
from stillhouse.teachers.served import ServedKnowledge
from stillhouse.teachers.ticket import FillPlan, FillRequest, TeacherTicket
from stillhouse.teachers.trial_teacher import TrialTeacher, weights_here
from stillhouse.teachers.view_opener import ViewOpener

TICKET = TeacherTicket(
    definition=TeacherDefinition(name="big", model="lenet", num_classes=10, input_shape=(1, 8, 8)),
    weights_path="",
    weights_hash="",
    base={},
    home=HomeAddress(path="/home"),
    actor="teacher-1",
)


class Actor:
    """Gives the answers in order; an exception is raised, `None` for an actor that can not be found."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []

    def find(self, _name: str, *, namespace: str) -> "Actor":
        if self.answers and self.answers[0] is None:
            self.answers.pop(0)
            raise ValueError("Failed to look up actor")
        return self

    def __getattr__(self, _method: str) -> "Actor":
        return self

    def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ActorLink]:
    def make(actor: Actor, timeout_s: float = 60.0) -> ActorLink:
        def get(answer: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(ray, "get_actor", actor.find)
        monkeypatch.setattr(ray, "get", get)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        return ActorLink(TICKET, timeout_s=timeout_s)

    return make


def test_a_call_outlives_the_actors_restart(link: Callable[..., ActorLink]) -> None:
    actor = Actor(None, ActorDiedError(), None, ActorUnavailableError("restarting", None), 42)
    assert link(actor).call("request", 3) == 42
    assert actor.asked == [(3,), (3,), (3,)]


def test_an_actor_that_does_not_come_back_is_one_sentence(link: Callable[..., ActorLink]) -> None:
    with pytest.raises(InfrastructureError, match="teacher 'big' did not answer for 0 s"):
        link(Actor(ActorDiedError()), timeout_s=0.0).call("request", 3)


def test_a_call_that_there_is_no_room_for_is_repeated_for_as_long_as_the_actor_answers(
    link: Callable[..., ActorLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = Actor(*[QueueFull(48)] * 50, 42)
    busy = link(actor, timeout_s=5.0)
    pauses: list[float] = []
    seconds = itertools.accumulate(itertools.repeat(1.0))
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    assert busy.call("call") == 42
    assert len(actor.asked) == 51
    assert pauses[:3] == [0.01, 0.02, 0.04], "it doubles"
    assert max(pauses) == 1.0


def test_a_lost_actor_is_asked_again_after_growing_pauses_for_two_minutes(
    link: Callable[..., ActorLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = link(Actor(ActorDiedError()), timeout_s=ACTOR_TIMEOUT_S)
    clock = [0.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with pytest.raises(InfrastructureError, match="did not answer for 120 s"):
        lost.call("call")
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert 100 < sum(pauses) <= 120


def test_an_error_of_the_teacher_itself_is_not_waited_out(link: Callable[..., ActorLink]) -> None:
    actor = Actor(ValueError("a map of the wrong shape"))
    with pytest.raises(ValueError, match="wrong shape"):
        link(actor).call("forward")
    assert len(actor.asked) == 1


def test_served_knowledge_sends_a_batchs_pixels_and_copies_the_answer(link: Callable[..., ActorLink]) -> None:
    answer = torch.ones(2, 10).numpy()
    answer.flags.writeable = False
    actor = Actor({"logits": answer})
    source = ServedKnowledge(link(actor), {"logits": logits()})
    gathered = source.gather(torch.arange(2), torch.full((2, 1, 8, 8), 3.0))
    assert source.samples_forwarded == 2
    assert gathered["logits"].add_(1).tolist() == [[2.0] * 10] * 2
    assert actor.asked[0][0].tolist() == torch.full((2, 1, 8, 8), 3.0).tolist()


# Waiting for views


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
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ViewOpener, Filler]]:
    """An opener whose clock goes on by a second whenever it sleeps."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda _seconds: now.__setitem__(0, now[0] + 1.0))

    def make(*steps: Any, plan: FillPlan = TICKET.plan) -> tuple[ViewOpener, Filler]:
        filler = Filler(tmp_path / "knowledge", *steps)
        ticket = dataclasses.replace(TICKET, home=HomeAddress(path=str(tmp_path)), plan=plan)
        return ViewOpener(ticket, {"logits": logits()}, cast("ActorLink", filler)), filler

    return make


MakeOpener = Callable[..., tuple[ViewOpener, Filler]]


def test_a_view_is_opened_when_its_filling_has_begun_with_one_call(opener: MakeOpener) -> None:
    open_views, filler = opener([4, 0])
    view = open_views(3, None, (7, 1))["logits"]
    assert view.ready(torch.tensor([0, 4]))
    assert not view.ready(torch.tensor([1]))
    assert filler.asked == [(FillRequest(view=3, kinds=(logits(),), reading=(7, 1), sweep=TICKET.sweep),)]


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


def test_rows_that_do_not_come_are_asked_for_again_every_few_seconds(opener: MakeOpener) -> None:
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
        # Each row comes when it was waited for as long as nobody asks.
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


def test_an_actor_that_is_gone_while_rows_are_waited_for_is_told(opener: MakeOpener) -> None:
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


def test_a_trial_gets_logits_of_every_class_back_whatever_form_they_are_kept_in(tmp_path: Path) -> None:
    definition = dataclasses.replace(TICKET.definition, num_classes=100)
    ticket = dataclasses.replace(TICKET, definition=definition, home=HomeAddress(path=str(tmp_path)), top_k=TopK(3))
    kind = ticket.form(logits())
    assert kind != logits()
    ticket = dataclasses.replace(ticket, modes={kind.id: "cached"})
    values = torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    with KnowledgeStore(tmp_path / "knowledge").writer(
        view_identity({}, kind, 0), rows=6, shape=(7,), dtype="float32"
    ) as writer:
        writer.put(np.arange(6), kind.compute(values, {}).numpy())
        writer.commit()
        writer.seal()
    source = TrialTeacher(ticket, {"logits": logits()}).source
    assert source is not None
    source.begin_epoch(0)
    gathered = source.gather(torch.tensor([4, 1]), torch.empty(0))["logits"]
    assert gathered.shape == (2, 100)
    assert torch.equal(gathered.topk(3).values, values[[4, 1]].topk(3).values)


@pytest.fixture
def weights(tmp_path: Path) -> tuple[TeacherTicket, Path]:
    """A ticket of a teacher that the actor has loaded, and its weights on this node."""
    path = tmp_path / "weights.safetensors"
    digest = save_weights(TICKET.definition.build(), path)
    return dataclasses.replace(TICKET, weights_path=str(path), weights_hash=digest), path


def test_the_weights_of_a_trial_are_those_that_the_actor_has_loaded(weights: tuple[TeacherTicket, Path]) -> None:
    ticket, path = weights
    assert weights_here(ticket) == path


@pytest.mark.parametrize("harm", ["another training", "cut off", "gone"])
def test_other_weights_are_refused(weights: tuple[TeacherTicket, Path], harm: str) -> None:
    """Whole and of the right shapes, but another teacher than the one whose knowledge others read."""
    ticket, path = weights
    if harm == "another training":
        save_weights(TICKET.definition.build(), path)
    elif harm == "cut off":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    with pytest.raises(InfrastructureError, match="no longer holds the weights that teacher 'big' was loaded from"):
        weights_here(ticket)


@pytest.mark.parametrize("copy", ["none", "of another training"])
def test_a_node_without_the_right_copy_of_the_weights_fetches_it(
    weights: tuple[TeacherTicket, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: str
) -> None:
    ticket, path = weights
    here = tmp_path / "here" / "weights.safetensors"
    if copy != "none":
        save_weights(TICKET.definition.build(), here)

    class Node:
        def here(self, _path: str) -> Path:
            return here

        def pull(self, wanted: Path) -> None:
            wanted.parent.mkdir(exist_ok=True)
            shutil.copy(path, wanted)

    monkeypatch.setattr(client_module, "node_home", lambda _address: Node())
    found = weights_here(dataclasses.replace(ticket, home=HomeAddress(path=str(tmp_path))))
    assert found == here
    assert found.read_bytes() == path.read_bytes()
