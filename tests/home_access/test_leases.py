"""Leases of a shared actor: by a clock of our own, and of a real actor whose drivers are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes
from ray.exceptions import ActorDiedError, RayActorError

from stillhouse.home_access.leases import LeaseBook, Leased, LeaseHolder
from stillhouse.teachers.actor_registry import end_teachers, running_teachers

DRIVER = """
import sys
from pathlib import Path

import numpy as np
import ray

from stillhouse.data.datasets import load_dataset
from stillhouse.data.views import Views
from stillhouse.knowledge import logits
from stillhouse.spec.training import Training
from stillhouse.teachers.actor import start_actor
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.ticket import TeacherTicket
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.leases import LeaseHolder

address, home, name = sys.argv[1:]
ray.init(address=address, namespace="stillhouse", log_to_driver=False)
data = load_dataset("digits", options={"limit": 200}, validation=40)
views = Views(("crop",), 2, data.input_shape, len(data.train))
definition = TeacherDefinition(
    name="big",
    model="lenet",
    training=Training(batch_size=64),
    epochs=1,
    num_classes=data.num_classes,
    input_shape=data.input_shape,
)
reference = ray.put(data.to_arrays())
where = HomeAddress(path=home)
resources = {"cpus": 0, "gpus": 1, "placement": {}, "import_paths": [], "method_folders": [], "expire_s": 4.0}
actor, handle = start_actor(definition, data, reference, views, home=where, dtype="float32", **resources)
leases = LeaseHolder({"sweep": name}, renew_s=0.5)
leases.hold(handle, [reference])
facts = ray.get(handle.prepare.remote())
loaded = {name: facts[name] for name in ("weights_path", "weights_hash", "base")}
ticket = TeacherTicket(definition=definition, home=where, actor=actor, **loaded)
link = ActorLink(ticket, timeout_s=60)
print("process", link.call("process_id"), flush=True)
for line in sys.stdin:
    if line.strip() == "release":
        leases.close()
    else:
        images = np.zeros((3, *data.input_shape), np.float32)
        said = link.call("forward", images, {"logits": logits()}, None, name)["logits"]
        print("answer", said.tobytes().hex(), flush=True)
"""


def test_an_actor_waits_for_its_first_lease_and_ends_when_the_last_expires() -> None:
    now = [100.0]
    book = LeaseBook(60.0, clock=lambda: now[0])
    now[0] += 59
    assert not book.over
    book.renew("one", {"sweep": "a"})
    now[0] += 30
    book.renew("other", {"sweep": "b"})
    assert book.listed() == [{"sweep": "a", "renewed_s": 30.0}, {"sweep": "b", "renewed_s": 0.0}]
    now[0] += 31
    assert [each["sweep"] for each in book.listed()] == ["b"], "the first was not renewed"
    assert not book.over
    now[0] += 30
    assert book.over


def test_an_actor_ends_at_once_when_its_last_lease_is_released() -> None:
    book = LeaseBook(60.0, clock=lambda: 0.0)
    book.renew("one", {})
    book.renew("other", {})
    book.release("one")
    assert not book.over
    book.release("other")
    assert book.over


def test_a_lease_that_comes_too_late_is_refused() -> None:
    book = LeaseBook(60.0, clock=lambda: 0.0)
    assert book.renew("one", {})
    assert not book.close_if_over()
    book.release("one")
    assert book.renew("two", {}), "nobody has looked yet"
    book.release("two")
    assert book.close_if_over()
    assert not book.renew("three", {})
    assert book.over


def test_an_actor_that_nobody_leases_ends() -> None:
    now = [0.0]
    book = LeaseBook(60.0, clock=lambda: now[0])
    assert not book.over
    now[0] = 61.0
    assert book.over


class Stand:
    """A fake handle of an actor: its `lease` returns one answer after another, and records when it was called."""

    def __init__(self, name: str, *answers: Any) -> None:
        self._actor_id = name
        self._answers = list(answers)
        self.asked = 0
        self.lease = self.release = self

    def remote(self, *_arguments: Any) -> list[Any]:
        self.asked += 1
        # A reference, of which `ray.get` gives the content.
        return [self._answers.pop(0) if self._answers else True]


@pytest.fixture
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: list[Any]) -> Any:
        if isinstance(reference[0], Exception):
            raise reference[0]
        return reference[0]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))


GONE = ActorDiedError()


@pytest.mark.usefixtures("_no_ray")
@pytest.mark.parametrize("answer", [False, GONE])
def test_an_actor_that_gives_no_lease_is_started_again_until_one_does(answer: Any) -> None:
    ending, other = Stand("ending", answer, answer), Stand("other")
    found = iter([ending, other])
    holder = LeaseHolder({}, renew_s=0.01)
    holder.hold(ending, again=lambda: next(found))
    wait_until(lambda: other.asked > 1, 10)
    holder.close()
    assert ending.asked == 2


@pytest.mark.usefixtures("_no_ray")
def test_who_wants_no_other_actor_learns_that_there_is_no_lease() -> None:
    ending, living = Stand("ending", False, False, False), Stand("living")
    holder = LeaseHolder({}, renew_s=60.0)
    holder.hold(ending)
    holder.hold(living)
    assert not holder.is_granted(ending)
    assert holder.is_granted(living)
    assert not holder.is_granted(Stand("nobody's"))
    holder.close()


class Driver:
    """A process with a lease of the teacher."""

    def __init__(self, address: str, home: Path, name: str) -> None:
        command = [sys.executable, "-c", DRIVER, address, str(home), name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (home / f"{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._log = home / f"{name}.log"
        self.actor_process = 0

    def ready(self) -> "Driver":
        self.actor_process = int(self.hear("process"))
        return self

    def hear(self, what: str) -> str:
        assert self._process.stdout is not None
        word, _, said = self._process.stdout.readline().partition(" ")
        assert word == what, self._log.read_text()
        return said.strip()

    def tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def ask(self) -> str:
        self.tell("ask")
        return self.hear("answer")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with one GPU, as far as Ray counts; this process is connected to it."""
    nodes = Nodes()
    try:
        nodes.add_node(num_cpus=2, num_gpus=1, include_dashboard=False)
        ray.init(address=nodes.address, namespace="stillhouse", log_to_driver=False)
        yield nodes.address
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def start(address: str, tmp_path: Path) -> Iterator[Callable[[str], Driver]]:
    drivers: list[Driver] = []

    def begin(name: str) -> Driver:
        drivers.append(Driver(address, tmp_path, name))
        return drivers[-1]

    yield begin
    for driver in drivers:
        driver.kill()
    end_teachers(each["actor"] for each in running_teachers())


def wait_until(there: Callable[[], Any], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def users() -> list[str]:
    return sorted(lease["sweep"] for each in running_teachers() for lease in each["leases"])


@pytest.mark.ray
@pytest.mark.slow
def test_two_sweeps_share_an_actor_that_outlives_the_one_that_started_it_and_no_other(
    start: Callable[[str], Driver],
) -> None:
    first = start("first").ready()
    second = start("second").ready()
    assert first.actor_process == second.actor_process
    answer = first.ask()
    assert second.ask() == answer
    assert users() == ["first", "second"]
    assert ray.available_resources().get("GPU", 0) == 0

    # The data that the actor was started with dies with its driver; then the actor has to read some again.
    first.kill()
    wait_until(lambda: users() == ["second"])
    os.kill(second.actor_process, signal.SIGKILL)
    assert second.ask() == answer, "by the data that the second one brought"

    second.kill()
    wait_until(lambda: not running_teachers())
    wait_until(lambda: ray.available_resources().get("GPU", 0) == 1)


@pytest.mark.ray
@pytest.mark.slow
def test_an_actor_that_is_released_is_gone_and_the_next_sweep_starts_another(start: Callable[[str], Driver]) -> None:
    first = start("first").ready()
    answer = first.ask()
    first.tell("release")
    wait_until(lambda: not running_teachers())
    second = start("second").ready()
    assert second.actor_process != first.actor_process
    assert second.ask() == answer


@pytest.mark.ray
@pytest.mark.slow
def test_an_actor_that_is_found_in_the_moment_of_its_end_is_started_again(address: str) -> None:
    class Lingering(Leased):
        ending = False

        def _end_when_over(self, own: Any, look_s: float) -> None:
            while not self._book.close_if_over():
                time.sleep(look_s)
            self.ending = True
            time.sleep(3.0)
            super()._end_when_over(own, look_s)

        def about(self) -> dict[str, Any]:
            return {"pid": os.getpid(), "ending": self.ending, "leases": self.leases()}

    options = {"name": "lingering", "namespace": "stillhouse", "get_if_exists": True, "lifetime": "detached"}

    def start() -> Any:
        return ray.remote(Lingering).options(**options, num_cpus=0, max_restarts=-1, max_concurrency=4).remote(60.0)

    def about() -> dict[str, Any]:
        try:
            found: dict[str, Any] = ray.get(ray.get_actor("lingering", namespace="stillhouse").about.remote())
        except (ValueError, RayActorError):
            return {"pid": 0, "ending": False, "leases": []}
        return found

    first, second = LeaseHolder({"sweep": "first"}), LeaseHolder({"sweep": "second"})
    first.hold(start())
    wait_until(lambda: about()["leases"])
    before = about()["pid"]
    first.close()
    wait_until(lambda: about()["ending"])
    second.hold(start(), again=start)
    assert about()["pid"] == before, "the one that ends was found"
    wait_until(lambda: [each["sweep"] for each in about()["leases"]] == ["second"])
    assert about()["pid"] != before
    second.close()
    wait_until(lambda: not about()["pid"])
