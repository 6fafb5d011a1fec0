"""Sealed knowledge against its teacher: the same is found the same, and what was tampered with is found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.knowledge import Knowledge, feature, logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.top_k import TopK
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.library import LoadedTeacher
from stillhouse.teachers.service import TeacherService

ROWS = 160
KINDS = [logits(), feature("relu1"), TopK(2, 2).of(logits(), 10)]
MakeService = Callable[..., TeacherService]


@pytest.fixture
def make_service(trained: tuple[Path, LoadedTeacher], digits: ImageData, views: Views, tmp_path: Path) -> MakeService:
    def make(dtype: str = "float32") -> TeacherService:
        service = TeacherService(trained[1], digits, views, KnowledgeStore(tmp_path), dtype=dtype)
        for view in (0, 2):
            service.fill(view, KINDS, (3, 1))
        return service

    return make


def verify(service: TeacherService, pairs: int = 10_000, kinds: list[Knowledge] = KINDS) -> dict[str, Any]:
    """10,000 draws of 320 pairs leave none out."""
    return service.verify(kinds, pairs=pairs, seed=0)


def tamper(service: TeacherService, kind: Knowledge, view: int, sample: int, by: float) -> None:
    """A view with valid checksums whose values are not the teacher's."""
    identity = view_identity(service.base, kind, view)
    rows = service._store.open(identity).gather(torch.arange(ROWS)).numpy()
    rows[sample] += by
    service._store.remove(service._store.key(identity))
    with service._store.writer(identity, rows=ROWS, shape=rows.shape[1:], dtype=rows.dtype.name) as writer:
        writer.put(np.arange(ROWS), rows)
        writer.commit()
        writer.seal()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_the_teacher_said_it_says_again(make_service: MakeService, dtype: str) -> None:
    assert verify(make_service(dtype)) == {"compared": 2 * ROWS * len(KINDS), "differences": []}


def test_a_sample_that_the_teacher_never_said_is_named_and_its_view_made_again(make_service: MakeService) -> None:
    service = make_service()
    before = service._store.open(view_identity(service.base, logits(), 2)).gather(torch.arange(ROWS))
    tamper(service, logits(), 2, sample=77, by=0.5)
    (found,) = verify(service)["differences"]
    assert (found["knowledge"], found["view"], found["sample"]) == ("logits", 2, 77)
    assert found["largest_difference"] == pytest.approx(0.5, rel=1e-3)
    assert not service._store.is_sealed(view_identity(service.base, logits(), 2))
    assert service._store.is_sealed(view_identity(service.base, logits(), 0))
    service.fill(2, KINDS, (3, 1))
    assert torch.equal(service._store.open(view_identity(service.base, logits(), 2)).gather(torch.arange(ROWS)), before)
    assert verify(service)["differences"] == []


def test_a_number_that_is_none_differs(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    # Writers of the first release did not check values in their stored format.
    monkeypatch.setattr("stillhouse.knowledge.writer.in_format", lambda values, dtype, what: values.astype(dtype))
    service = make_service()
    tamper(service, logits(), 0, sample=3, by=float("nan"))
    (found,) = verify(service)["differences"]
    assert found["sample"] == 3
    assert found["largest_difference"] == float("inf")


def test_a_damaged_view_is_reported_and_unsealed(make_service: MakeService) -> None:
    service = make_service()
    (part,) = service._store.folder(view_identity(service.base, logits(), 0)).glob("part-*")
    part.write_bytes(part.read_bytes()[:-400])
    (found,) = verify(service)["differences"]
    assert (found["knowledge"], found["view"]) == ("logits", 0)
    assert "part-000" in found["reason"]


def test_the_sample_is_the_same_for_the_same_seed_and_no_larger_than_requested(make_service: MakeService) -> None:
    service = make_service()
    seen: list[tuple[int, list[int]]] = []
    forward = service.filler.forward

    def watching(reader: Any, kinds: Any, view: int, indices: Any) -> Any:
        seen.append((view, indices.tolist()))
        return forward(reader, kinds, view, indices)

    service.filler.forward = watching  # type: ignore[method-assign]
    found = verify(service, pairs=20, kinds=[logits()])
    first = list(seen)
    seen.clear()
    verify(service, pairs=20, kinds=[logits()])
    assert seen == first
    assert 15 <= found["compared"] <= 20
    assert {view for view, _ in first} == {0, 2}


def test_with_nothing_sealed_there_is_nothing_to_compare(make_service: MakeService) -> None:
    assert verify(make_service(), kinds=[feature("relu2")]) == {"compared": 0, "differences": []}
