"""Several services that fill one view together, in processes of their own: nothing twice, nothing lost, the same bits."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.knowledge import feature, logits
from stillhouse.knowledge.fill_log import count_fills
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View
from stillhouse.teachers import view_filler
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.library import LoadedTeacher
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.ticket import TeacherTicket

ROWS = 160
BATCH = 8
KINDS = (logits(), feature("relu1"))
READING = (3, 1)


def service_over(root: Path, teacher: LoadedTeacher, data: ImageData, views: Views) -> TeacherService:
    root.mkdir(exist_ok=True)
    return TeacherService(teacher, data, views, KnowledgeStore(root))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty batches, each a stretch of its own."""
    monkeypatch.setattr(view_filler, "FILL_BATCH", BATCH)
    monkeypatch.setattr(view_filler, "_STRETCH_S", 0.0)


FILL = """
import os
import sys
import time
from pathlib import Path

from stillhouse.data.datasets import load_dataset
from stillhouse.data.views import Views
from stillhouse.knowledge import feature, logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.spec.training import Training
from stillhouse.teachers import view_filler
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.service import TeacherService

root, library, dies_in_batch, batch, reading = sys.argv[1:]
view_filler.FILL_BATCH, view_filler._STRETCH_S = int(batch), 0.0
data = load_dataset("digits", options={"limit": 200}, validation=40)
views = Views(("crop",), 3, data.input_shape, len(data.train))
definition = TeacherDefinition(
    name="big",
    model="lenet",
    training=Training(batch_size=64),
    epochs=3,
    num_classes=data.num_classes,
    input_shape=data.input_shape,
)
service = TeacherService(TeacherLibrary(Path(library)).obtain(definition, data, views), data, views, KnowledgeStore(Path(root)))
fill_batch, batches = service.filler._fill_batch, [0]

def slow(*arguments):
    batches[0] += 1
    clock = fill_batch(*arguments)
    if batches[0] == int(dies_in_batch):
        while service.filler.samples_forwarded < (batches[0] - 1) * int(batch):
            time.sleep(0.01)  # the batches before are durable
        os._exit(9)
    time.sleep(0.05)
    return clock

service.filler._fill_batch = slow
print("ready", flush=True)
sys.stdin.readline()
service.fill(1, [logits(), feature("relu1")], tuple(map(int, reading.split(","))))
print(service.counters()["samples_forwarded"], flush=True)
"""


def fill_in_processes(root: Path, library: Path, dies_in_batch: Sequence[int]) -> tuple[list[int], list[float]]:
    """Fills view 1 in a process for each number, which may die in the middle of that batch; they begin at the same time.

    Returns:
        their exit codes, and the forwarded samples of each that lived.
    """
    root.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FILL, str(root), str(library), str(dies), str(BATCH), ",".join(map(str, READING))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        for dies in dies_in_batch
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    return [process.returncode for process in processes], [float(each) for each in said if each]


def sealed(root: Path, service: TeacherService, kind: Knowledge) -> View:
    return KnowledgeStore(root).open(view_identity(service.base, kind, 1))


@pytest.mark.parametrize("dies_in_batch", [0, 4], ids=["both live", "one dies"])
def test_two_processes_fill_a_view_together_without_forwarding_a_sample_twice(
    trained: tuple[Path, LoadedTeacher], digits: ImageData, views: Views, tmp_path: Path, dies_in_batch: int
) -> None:
    alone = service_over(tmp_path / "alone", trained[1], digits, views)
    alone.fill(1, KINDS, READING)
    root = tmp_path / "shared"
    codes, forwarded = fill_in_processes(root, trained[0], [0, dies_in_batch])
    assert codes == ([0, 9] if dies_in_batch else [0, 0])
    counted = count_fills(root, trained[1].weights_hash)["samples"]
    assert counted == ROWS
    # What the dead one had made durable stays, but for the batch that it died in.
    assert sum(forwarded) == ROWS - max(0, dies_in_batch - 1) * BATCH
    if not dies_in_batch:
        assert min(forwarded) >= 2 * BATCH, "both worked"
    for kind in KINDS:
        one, two = (sealed(place, alone, kind).gather(torch.arange(ROWS)) for place in (tmp_path / "alone", root))
        assert torch.equal(one, two)


def test_a_batch_is_claimed_by_one_and_learned_of_by_the_other(tmp_path: Path) -> None:
    store = KnowledgeStore(tmp_path)
    layout: dict[str, Any] = {"rows": 4, "shape": (2,), "dtype": "float32", "shared": True}
    counted = {"first"}
    values = np.arange(4, dtype=np.float32).reshape(2, 2)
    with store.writer({"a": 1}, **layout, counted=counted.__contains__) as one:
        rows = np.arange(2)
        claimed = one.claim(0, rows)
        assert claimed is not None
        assert claimed.all()
        with store.writer({"a": 1}, **layout, counted=counted.__contains__) as other:
            assert other.claim(0, rows) is None
            one.put(rows, values)
            one.commit("first")
            one.release([0])
            learned = other.claim(0, rows)
            assert learned is not None
            assert not learned.any()
            assert other.missing.tolist() == [False, False, True, True]

            mine = other.claim(1, np.array([2, 3]))
            assert mine is not None
            assert mine.all()
            other.put(np.array([2, 3]), values)
            other.commit("not counted")
        # Its process died before it accounted for the stretch, so that one is made again.
        again = one.claim(1, np.array([2, 3]))
        assert again is not None
        assert again.all()
        one.put(np.array([2, 3]), values)
        counted.add("second")
        one.commit("second")
        one.release([1])
        one.seal()
    assert torch.equal(store.open({"a": 1}).gather(torch.arange(4)), torch.from_numpy(np.concatenate([values, values])))


def test_a_view_is_not_taken_away_from_those_who_share_it(tmp_path: Path) -> None:
    store = KnowledgeStore(tmp_path)
    layout: dict[str, Any] = {"rows": 4, "shape": (2,), "dtype": "float32", "shared": True}
    with store.writer({"a": 1}, **layout):
        with store.writer({"a": 1}, **layout):
            assert not store.remove(store.key({"a": 1}))
        assert not store.remove(store.key({"a": 1}))
    assert store.remove(store.key({"a": 1}))


class Replica:
    """An actor that reports its node and its load."""

    def __init__(self, name: str, node: str, waiting: int) -> None:
        self._actor_id = name
        self._load = (node, waiting)
        self.asked: list[tuple[Any, ...]] = []
        self.dead = False

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        replica = self

        class Method:
            def remote(self, *arguments: Any) -> Any:
                if method != "load":
                    replica.asked.append((method, *arguments))
                return (replica, method)

        return Method()

    def answer(self, method: str) -> Any:
        if self.dead:
            raise ActorDiedError()
        return self._load if method == "load" else self._actor_id


@pytest.fixture
def link_to(monkeypatch: pytest.MonkeyPatch, ticket: TeacherTicket) -> Callable[..., ActorLink]:
    """A link of a process on the node `here`."""

    class Here:
        def get_node_id(self) -> str:
            return "here"

    def make(*replicas: Replica) -> ActorLink:
        by_name = {replica._actor_id: replica for replica in replicas}
        monkeypatch.setattr(ray, "get_actor", lambda name, namespace: by_name[name])
        monkeypatch.setattr(ray, "get", lambda reference: reference[0].answer(reference[1]))
        monkeypatch.setattr(ray, "wait", lambda references, num_returns, timeout: (references, []))
        monkeypatch.setattr(ray, "get_runtime_context", Here)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        return ActorLink(dataclasses.replace(ticket, actor="a", replicas=("b", "c")))

    return make


def test_a_trial_calls_the_replica_on_its_own_node(link_to: Callable[..., ActorLink]) -> None:
    replicas = [Replica("a", "there", 0), Replica("b", "here", 9), Replica("c", "there", 1)]
    link = link_to(*replicas)
    assert link.call("forward") == "b"
    assert [replica.asked for replica in replicas] == [[], [("forward",)], []]
    assert link.calls == 3 + 1, "each told how much it has to do, and one was called"


def test_a_broadcast_goes_to_one_replica_with_the_names_of_all(
    link_to: Callable[..., ActorLink],
) -> None:
    replicas = [Replica("a", "there", 1), Replica("b", "here", 0), Replica("c", "there", 2)]
    link = link_to(*replicas)
    for view in range(3):
        link.broadcast("request", view)
    told = sorted(asked for replica in replicas for asked in replica.asked)
    assert told == [("request", view, ("a", "b", "c")) for view in range(3)]
    assert [len(replica.asked) for replica in replicas] == [1, 1, 1], "each in turn"
    assert link.calls == 3
    for replica in replicas[:2]:
        replica.dead = True
    assert link.broadcast("request", 3) == "c"


def test_without_one_it_calls_the_replica_with_the_fewest_calls_waiting(link_to: Callable[..., ActorLink]) -> None:
    assert link_to(Replica("a", "there", 5), Replica("b", "there", 9), Replica("c", "else", 2)).call("forward") == "c"


def test_when_its_replica_dies_it_calls_another(link_to: Callable[..., ActorLink]) -> None:
    replicas = [Replica("a", "there", 1), Replica("b", "here", 0), Replica("c", "there", 2)]
    link = link_to(*replicas)
    assert link.call("forward") == "b"
    replicas[1].dead = True
    assert link.call("forward") == "a"
