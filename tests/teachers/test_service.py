"""Requests to a teacher's service: their order, what they share, how the service rests and closes, whom the log counts."""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.distill.sources import Reading
from stillhouse.errors import DiskFullError
from stillhouse.knowledge import Knowledge, feature, logits, reduced
from stillhouse.knowledge.fill_log import append_line, count_fills, fill_log
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.library import LoadedTeacher
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.ticket import FillRequest

ROWS = 160


LAYER = "relu1"  # of LeNet


def energy(output: Tensor) -> Tensor:
    """Mean square over channels, [B, H, W]."""
    return output.square().mean(1)


KINDS = [logits(), feature(LAYER), reduced(energy, LAYER)]


def full(*_arguments: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_pixels_of_no_view_are_answered_as_by_the_teacher_itself(
    make_service: Callable[..., TeacherService], trained: tuple[Path, LoadedTeacher]
) -> None:
    pixels = torch.randn(5, 1, 8, 8)
    service = make_service()
    answer = service.forward(pixels.numpy(), {"one": logits(), "two": reduced(energy, LAYER)})
    assert answer.keys() == {"one", "two"}
    with torch.no_grad():
        assert np.array_equal(answer["one"], trained[1].model(pixels).numpy())
    assert service.counters()["samples_forwarded"] == 5


def wait_for(true: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(3000):
        if true():
            return
        event.wait(0.01)
    raise AssertionError("waited too long")


def test_a_requested_view_is_sealed_without_waiting(make_service: Callable[..., TeacherService]) -> None:
    service = make_service()
    assert service.request(FillRequest(view=1, kinds=tuple(KINDS))) is None
    identities = [view_identity(service.base, kind, 1) for kind in KINDS]
    wait_for(lambda: all(service._store.is_sealed(identity) for identity in identities))
    assert service.request(FillRequest(view=1, kinds=tuple(KINDS))) is None
    assert service.counters()["samples_forwarded"] == ROWS


def test_what_a_trial_waits_for_goes_before_what_only_runs_ahead(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def fill(_self: TeacherService, view: int, _kinds: object, _reading: object) -> None:
        begun.set()
        go.wait(30)
        filled.append(view)

    monkeypatch.setattr(TeacherService, "fill", fill)
    service = make_service()
    service.request(FillRequest(view=0, kinds=(logits(),), ahead=True))
    assert begun.wait(30)
    service.request(FillRequest(view=1, kinds=(logits(),), ahead=True))
    service.request(FillRequest(view=2, kinds=(logits(),), ahead=True))
    service.request(FillRequest(view=7, kinds=(logits(),)))
    go.set()
    wait_for(lambda: len(filled) == 4)
    assert filled == [0, 7, 1, 2]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No service fills anything until it is set."""
    go = threading.Event()
    fill = TeacherService.fill

    def late(self: TeacherService, view: int, kinds: Iterable[Knowledge], reading: Reading | None) -> None:
        go.wait(30)
        fill(self, view, kinds, reading)

    monkeypatch.setattr(TeacherService, "fill", late)
    return go


def test_a_view_is_filled_with_what_was_requested_in_one_pass_for_all_requests(
    make_service: Callable[..., TeacherService], held: threading.Event
) -> None:
    service = make_service()
    service.request(FillRequest(view=2, kinds=(feature(LAYER),), ahead=True))
    service.request(FillRequest(view=0, kinds=tuple(KINDS), ahead=True))
    service.request(FillRequest(view=1, kinds=(logits(),), ahead=True))
    service.request(FillRequest(view=1, kinds=(feature(LAYER),)))
    held.set()
    wait_for(lambda: service._thread is None)
    asked = {0: KINDS, 1: [logits(), feature(LAYER)], 2: [feature(LAYER)]}
    for view, kinds in asked.items():
        for kind in KINDS:
            assert service._store.is_sealed(view_identity(service.base, kind, view)) == (kind in kinds)
    assert count_fills(service._store.root, service.teacher.weights_hash)["samples"] == 3 * ROWS


def test_what_one_sweep_requested_of_a_view_is_not_filled_for_another(make_service: Callable[..., TeacherService]) -> None:
    """An actor may live on with a later sweep; what was removed in between takes no room again."""
    service = make_service()
    service.request(FillRequest(view=0, kinds=tuple(KINDS)))
    wait_for(lambda: service._thread is None)
    for kind in KINDS:
        assert service._store.remove(service._store.key(view_identity(service.base, kind, 0)))
    service.request(FillRequest(view=0, kinds=(logits(),)))
    wait_for(lambda: service._thread is None)
    assert [service._store.is_sealed(view_identity(service.base, kind, 0)) for kind in KINDS] == [True, False, False]


def test_a_service_that_was_closed_leaves_no_thread_behind(make_service: Callable[..., TeacherService]) -> None:
    service = make_service()
    for view in range(3):
        service.request(FillRequest(view=view, kinds=tuple(KINDS), ahead=True))
    service.close()
    assert "filler" not in {thread.name for thread in threading.enumerate()}
    # The view that was begun is complete, the rest as if it had never been requested.
    assert {entry["sealed"] for entry in service._store.entries()} <= {True}


@pytest.mark.usefixtures("small_batches")
def test_a_resting_service_writes_nothing_more_and_continues_at_the_next_request(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, half_way, go_on = make_service(), threading.Event(), threading.Event()
    fill_batch = service.filler._fill_batch

    batches: list[int] = []

    def slow(*arguments: Any) -> Any:
        batches.append(1)
        if len(batches) == 3:
            half_way.set()
            go_on.wait(20)
        return fill_batch(*arguments)

    monkeypatch.setattr(service.filler, "_fill_batch", slow)
    for view in range(2):
        service.request(FillRequest(view=view, kinds=(logits(),)))
    assert half_way.wait(20)
    resting = threading.Thread(target=service.rest)
    resting.start()
    wait_for(lambda: service.filler.resting)
    go_on.set()
    resting.join()
    store = service._store.root
    # The stretch that was under way, and not another one.
    assert count_fills(store, service.teacher.weights_hash)["samples"] == ROWS // 2 + 40
    assert service._thread is None
    assert service.request(FillRequest(view=0, kinds=(logits(),))) is None
    wait_for(lambda: service._store.is_sealed(view_identity(service.base, logits(), 0)))
    service.close()
    assert count_fills(store, service.teacher.weights_hash)["samples"] == ROWS


def test_the_reason_of_a_failed_filling_is_returned_once_and_filling_goes_on(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert service.request(FillRequest(view=0, kinds=(logits(),))) is None
        wait_for(lambda: service._error is not None)
    error = service.request(FillRequest(view=0, kinds=(logits(),)))
    assert isinstance(error, DiskFullError)
    wait_for(lambda: service._store.is_sealed(view_identity(service.base, logits(), 0)))
    assert service.request(FillRequest(view=0, kinds=(logits(),))) is None


def test_the_log_counts_one_teacher_from_an_offset_and_skips_torn_lines(tmp_path: Path) -> None:
    def line(teacher: str, rows: int) -> str:
        return json.dumps({"teacher": teacher, "rows": rows, "bytes": 2 * rows, "seconds": 0.5})

    log = fill_log(tmp_path)
    assert count_fills(tmp_path, "a") == {"samples": 0, "bytes": 0, "seconds": 0}
    append_line(log, line("a", 1))
    offset = log.stat().st_size
    append_line(log, line("a", 10))
    with log.open("a") as file:
        file.write('{"teacher": "a", "rows": 10')
    append_line(log, line("a", 100))
    append_line(log, line("b", 1000))
    log.write_bytes(log.read_bytes() + b'\xff\xfe\n[1]\n{"teacher": "a"}\n')
    append_line(log, line("a", 10000))
    assert count_fills(tmp_path, "b")["samples"] == 1000
    assert count_fills(tmp_path, "a", since_byte=offset)["samples"] == 10110
    assert count_fills(tmp_path, "a")["bytes"] == 2 * 10111


def test_what_is_filled_counts_for_the_sweeps_that_requested_the_view(
    make_service: Callable[..., TeacherService], held: threading.Event
) -> None:
    service = make_service()
    for view, sweep in ((0, "one"), (1, "one"), (1, "two"), (2, "")):
        service.request(FillRequest(view=view, kinds=(logits(),), ahead=True, sweep=sweep))
    held.set()
    wait_for(lambda: service._thread is None)
    service.request(FillRequest(view=0, kinds=(logits(),), sweep="two"))
    wait_for(lambda: service._thread is None)
    store, weights_hash = service._store.root, service.teacher.weights_hash
    counted = {sweep: count_fills(store, weights_hash, sweep=sweep)["samples"] for sweep in ("one", "two", "three", None)}
    assert counted == {"one": 2 * ROWS, "two": ROWS, "three": 0, None: 3 * ROWS}
