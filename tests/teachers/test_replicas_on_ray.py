"""Replicas in real actors, one of which is killed while both fill a view."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster as Nodes

from stillhouse.data.datasets import ImageData, Split
from stillhouse.data.hashing import reading_order
from stillhouse.data.views import Views
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge import reduced
from stillhouse.knowledge.fill_log import count_fills
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.models.weights import load_weights
from stillhouse.teachers.actor import start_actor
from stillhouse.teachers.definition import TeacherDefinition, view_identity
from stillhouse.teachers.ticket import FillPlan, TeacherTicket
from stillhouse.teachers.trial_teacher import TrialTeacher
from stillhouse.teachers.view_filler import FILL_BATCH
from stillhouse.teachers.view_opener import REPEAT_S
from stillhouse.workers import driver_import_paths

SLOWLY = """
import time


def slowly(output):
    time.sleep(0.4)
    return output
"""
COPIES = 30
"""160 digits so many times are ten batches of the teacher's."""


@pytest.fixture
def connected() -> Iterator[None]:
    nodes = Nodes()
    try:
        nodes.add_node(num_cpus=2, include_dashboard=False)
        ray.init(address=nodes.address, namespace="stillhouse", log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def wait_until(there: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_a_view_is_whole_and_each_sample_counted_once_when_one_of_two_replicas_is_killed(
    digits: ImageData,
    make_definition: Callable[..., TeacherDefinition],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "users_slow.py").write_text(SLOWLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_slow", raising=False)
    import users_slow  # type: ignore[import-not-found]  # written above

    many = Split(digits.train.images.repeat(COPIES, 1, 1, 1), digits.train.labels.repeat(COPIES))
    data = dataclasses.replace(digits, train=many, fingerprint="many digits")
    rows = len(data.train)
    views = Views(("crop",), 2, data.input_shape, rows)
    definition, home = make_definition(epochs=1), HomeAddress(path=str(tmp_path / "home"))
    kind, reading = reduced(users_slow.slowly), (5, 0)
    reference = ray.put(data.to_arrays())
    names, handles, facts = [], [], {}
    for replica in range(2):
        name, handle = start_actor(
            definition,
            data,
            reference,
            views,
            home=home,
            dtype="float32",
            cpus=1,
            gpus=0,
            placement={},
            import_paths=driver_import_paths(),
            method_folders=[],
            replica=replica,
        )
        facts = ray.get(handle.prepare.remote())
        names.append(name)
        handles.append(handle)
    ticket = TeacherTicket(
        definition=definition,
        weights_path=facts["weights_path"],
        weights_hash=facts["weights_hash"],
        base=facts["base"],
        home=home,
        actor=names[0],
        replicas=tuple(names[1:]),
        modes={kind.id: "cached"},
        plan=FillPlan.make([(kind, {1})]),
    )
    trial, began = TrialTeacher(ticket, {"logits": kind}), time.monotonic()
    source = trial.source
    assert source is not None
    source.begin_epoch(1, None, reading)
    wait_until(lambda: all(each["samples_forwarded"] > 0 for each in ray.get([each.counters.remote() for each in handles])))
    store = KnowledgeStore(tmp_path / "home" / "knowledge")
    assert count_fills(store.root, facts["weights_hash"])["samples"] < rows, "both are at it"
    assert trial.counters()["remote_calls"] <= 1 + (time.monotonic() - began) / REPEAT_S, "and one was asked"
    os.kill(ray.get(handles[1].process_id.remote()), signal.SIGKILL)

    order = torch.from_numpy(reading_order(*reading, rows))
    read = torch.cat([source.gather(batch, torch.empty(0))["logits"] for batch in order.split(128)])
    identity = view_identity(facts["base"], kind, 1)
    wait_until(lambda: store.is_sealed(identity))
    assert count_fills(store.root, facts["weights_hash"])["samples"] == rows
    model = definition.build()
    load_weights(model, Path(facts["weights_path"]))
    with torch.no_grad():
        said = model.eval()(data.normalise(views.augment(data.train.images, order, 1)))
    torch.testing.assert_close(read, said)
    assert rows > 8 * FILL_BATCH
