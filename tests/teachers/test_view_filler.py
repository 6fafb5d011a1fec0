"""Filling views: equal to what the teacher computes, in the order of reading, and continued after every interruption."""

import errno
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.data.datasets import ImageData
from stillhouse.data.hashing import reading_order
from stillhouse.data.views import Views
from stillhouse.distill.method import Method, Step
from stillhouse.distill.sources import CachedKnowledge, InlineKnowledge, Reading
from stillhouse.distill.trainer import Trainer
from stillhouse.errors import DiskFullError, UsageError
from stillhouse.knowledge import Knowledge, feature, input_gradient, logits, reduced
from stillhouse.knowledge import layout as layout_module
from stillhouse.knowledge.fill_log import count_fills
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.top_k import TopK
from stillhouse.knowledge.view import View
from stillhouse.knowledge.writer import ViewWriter
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training
from stillhouse.teachers import view_filler
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.library import LoadedTeacher
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.view_filler import ViewFiller

ROWS = 160


LAYER = "relu1"  # of LeNet


def energy(output: Tensor) -> Tensor:
    """Mean square over channels, [B, H, W]."""
    return output.square().mean(1)


KINDS = [logits(), feature(LAYER), reduced(energy, LAYER)]


def opened(service: TeacherService, kind: Knowledge, view: int) -> View:
    return KnowledgeStore(service._store.root).open(view_identity(service.base, kind, view))


def rows_of(service: TeacherService, kind: Knowledge, view: int) -> Tensor:
    return opened(service, kind, view).gather(torch.arange(ROWS))


def test_a_sealed_view_holds_what_the_teacher_computes_of_the_views_pixels(
    make_service: Callable[..., TeacherService], trained: tuple[Path, LoadedTeacher], digits: ImageData, views: Views
) -> None:
    service = make_service()
    model = trained[1].model
    kept: list[Tensor] = []
    handle = model.get_submodule(LAYER).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    for view in (0, 2):
        service.fill(view, KINDS)
        kept.clear()
        pixels = views.augment(digits.train.images, torch.arange(ROWS), view)
        with torch.no_grad():
            expected = model(digits.normalise(pixels))
        assert torch.equal(rows_of(service, logits(), view), expected)
        assert torch.equal(rows_of(service, feature(LAYER), view), kept[0])
        assert torch.equal(rows_of(service, reduced(energy, LAYER), view), kept[0].square().mean(1))
    handle.remove()


def test_kinds_that_miss_share_one_forward_pass(make_service: Callable[..., TeacherService]) -> None:
    service = make_service()
    service.fill(0, KINDS)
    assert service.counters()["samples_forwarded"] == ROWS
    service.fill(1, KINDS)
    assert service.counters()["samples_forwarded"] == 2 * ROWS


def test_what_is_sealed_is_not_forwarded_again_by_anybody(make_service: Callable[..., TeacherService]) -> None:
    service = make_service()
    service.fill(0, [logits()])
    service.fill(0, [logits()])
    assert service.counters()["samples_forwarded"] == ROWS
    restarted = make_service()
    restarted.fill(0, [logits(), feature(LAYER)])
    assert restarted.counters()["samples_forwarded"] == ROWS, "for the kind that was missing"
    assert count_fills(service._store.root, service.teacher.weights_hash)["samples"] == 2 * ROWS


def test_counters_and_log_say_what_was_written(make_service: Callable[..., TeacherService]) -> None:
    service = make_service()
    service.fill(0, KINDS)
    # Ten classes; the layer's maps; the same without their channels: 4 bytes each.
    shape = opened(service, feature(LAYER), 0).shape
    written = 4 * ROWS * (10 + int(np.prod(shape)) + int(np.prod(shape[1:])))
    counted = count_fills(service._store.root, service.teacher.weights_hash)
    assert service.counters()["bytes_written"] == counted["bytes"] == written
    assert written < sum(path.stat().st_size for path in service._store.root.glob("*/part-*")) < 2 * written
    assert counted["seconds"] > 0


def test_rows_are_filled_in_the_order_in_which_they_are_read(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    outputs = ViewFiller._outputs

    def watching(self: ViewFiller, reader: Any, kinds: Any, view: int, indices: Any, *others: Any) -> Any:
        seen.extend(indices.tolist())
        return outputs(self, reader, kinds, view, indices, *others)

    monkeypatch.setattr(ViewFiller, "_outputs", watching)
    service = make_service()
    service.fill(0, [logits()], (7, 3))
    assert seen[:2] == [0, 1], "to know the shape"
    assert seen[2:] == reading_order(7, 3, ROWS).tolist()
    seen.clear()
    service.fill(1, [logits()])
    assert seen == list(range(ROWS)), "it is known by now, as it is after a measurement"


@pytest.mark.usefixtures("small_batches")
def test_rows_can_be_read_while_the_view_is_being_filled(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service()
    order = torch.from_numpy(reading_order(0, 0, ROWS))
    ready: list[int] = []
    note = ViewFiller._note

    def looking(self: ViewFiller, *arguments: Any) -> None:
        note(self, *arguments)
        views = [KnowledgeStore(self._store.root).follow(view_identity(service.base, kind, 0)) for kind in KINDS]
        ready.append(min(sum(view.ready(order[row : row + 1]) for row in range(ROWS)) for view in views))
        assert all(view.ready(order[: ready[-1]]) for view in views)

    monkeypatch.setattr(ViewFiller, "_note", looking)
    service.fill(0, KINDS, (0, 0))
    assert ready == [40, 80, 120, 160]


@pytest.mark.usefixtures("small_batches")
def test_a_batch_is_written_while_the_next_one_is_computed(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, computing = make_service(), [threading.Event() for _ in range(5)]
    service.measure([logits()])
    begun: list[int] = []
    outputs, put = ViewFiller._outputs, ViewWriter.put
    overlapped: list[bool] = []

    def compute(self: ViewFiller, *arguments: Any) -> Any:
        computing[len(begun)].set()
        begun.append(1)
        return outputs(self, *arguments)

    def write(self: ViewWriter, rows: Any, values: Any) -> None:
        # Without a thread of its own this would wait for a batch that has not begun, since this one is not written.
        overlapped.append(len(overlapped) == 3 or computing[len(overlapped) + 1].wait(5))
        put(self, rows, values)

    monkeypatch.setattr(ViewFiller, "_outputs", compute)
    monkeypatch.setattr(ViewWriter, "put", write)
    service.fill(0, [logits()])
    assert overlapped == [True] * 4
    assert rows_of(service, logits(), 0).isfinite().all()


@pytest.mark.parametrize("harm", ["cut", "garbled", "missing", "foreign"])
def test_harmed_rows_alone_are_forwarded_again(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    # Logits take 40 bytes a row: blocks of 20 rows, parts of 40.
    monkeypatch.setattr(layout_module, "_BLOCK_BYTES", 800)
    monkeypatch.setattr(layout_module, "_PART_BYTES", 1600)
    service = make_service()
    service.fill(0, [logits()])
    before = rows_of(service, logits(), 0)
    folder = service._store.folder(view_identity(service.base, logits(), 0))
    part = folder / "part-002.arrow"
    if harm == "missing":
        part.unlink()
    elif harm == "cut":
        os.truncate(part, 100)
    elif harm == "garbled":
        content = bytearray(part.read_bytes())
        content[content.index(before[90].numpy().tobytes())] ^= 4
        part.write_bytes(bytes(content))
    else:
        part.write_bytes((folder / "part-001.arrow").read_bytes())
    restarted = make_service()
    restarted.fill(0, [logits()])
    assert restarted.counters()["samples_forwarded"] == (20 if harm == "garbled" else 40)
    assert torch.allclose(rows_of(restarted, logits(), 0), before, atol=1e-5)


class Died(BaseException):
    """The process dies: nothing runs afterwards except the closing of files."""


def die(*_arguments: Any) -> None:
    raise Died


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    "point", ["in the third batch", "between data and journal", "between two journals", "between journal and log", "at sealing"]
)
def test_a_filling_that_broke_off_goes_on_bit_for_bit_and_is_counted_once(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    service = make_service()
    calls = {"append": 0, "note": 0, "batch": 0}
    append, note, batch = ViewWriter._append, ViewFiller._note, ViewFiller._fill_batch
    last_append = {"between data and journal": 7, "between two journals": 8}.get(point)

    def appending(self: ViewWriter, line: bytes) -> None:
        calls["append"] += 1
        if calls["append"] == last_append:  # three kinds: the seventh begins the third stretch
            die()
        append(self, line)

    def noting(self: ViewFiller, *arguments: Any) -> None:
        calls["note"] += 1
        if calls["note"] == 3 and point == "between journal and log":
            die()
        note(self, *arguments)

    def filling(self: ViewFiller, *arguments: Any) -> Any:
        calls["batch"] += 1
        if calls["batch"] == 3 and point == "in the third batch":
            die()
        return batch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ViewWriter, "_append", appending)
        patch.setattr(ViewFiller, "_note", noting)
        patch.setattr(ViewFiller, "_fill_batch", filling)
        if point == "at sealing":
            patch.setattr(ViewWriter, "seal", die)
        with pytest.raises(Died):
            service.fill(0, KINDS, (0, 0))
    assert not service._store.is_sealed(view_identity(service.base, logits(), 0))
    kept = ROWS if point == "at sealing" else 80
    assert count_fills(service._store.root, service.teacher.weights_hash)["samples"] == kept
    restarted = make_service()
    restarted.fill(0, KINDS, (5, 5))
    assert restarted.counters()["samples_forwarded"] == ROWS - kept
    assert count_fills(service._store.root, service.teacher.weights_hash)["samples"] == ROWS
    undisturbed = make_service(store=KnowledgeStore(service._store.root / "elsewhere"))
    undisturbed._store.root.mkdir()
    undisturbed.fill(0, KINDS, (0, 0))
    for kind in KINDS:
        assert torch.equal(rows_of(restarted, kind, 0), rows_of(undisturbed, kind, 0))


@pytest.mark.usefixtures("small_batches")
def test_kinds_that_miss_different_rows_share_a_pass_over_what_either_misses(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service()
    with monkeypatch.context() as patch:
        batches: list[int] = []
        batch = ViewFiller._fill_batch

        def twice(self: ViewFiller, *arguments: Any) -> Any:
            batches.append(1)
            if len(batches) == 3:
                die()
            return batch(self, *arguments)

        patch.setattr(ViewFiller, "_fill_batch", twice)
        with pytest.raises(Died):
            service.fill(0, [logits()])
    both = make_service()
    both.fill(0, [logits(), feature(LAYER)])
    assert both.counters()["samples_forwarded"] == ROWS
    assert both.counters()["bytes_written"] == 4 * (80 * 10 + ROWS * int(np.prod(opened(both, feature(LAYER), 0).shape)))


def full(*_arguments: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "write"])
def test_a_full_disk_is_one_sentence_and_filling_goes_on_when_there_is_room(
    make_service: Callable[..., TeacherService], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    service = make_service()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(DiskFullError, match="no space") as caught:
            service.fill(0, [logits()])
    assert "\n" not in str(caught.value)
    service.fill(0, [logits()])
    assert rows_of(service, logits(), 0).shape == (ROWS, 10)


def test_half_precision_is_the_rounded_knowledge_at_half_the_size(make_service: Callable[..., TeacherService]) -> None:
    whole, half = make_service(), make_service(dtype="float16")
    for service in (whole, half):
        service.fill(0, [logits()])
    assert torch.equal(rows_of(half, logits(), 0), rows_of(whole, logits(), 0).half())
    assert opened(half, logits(), 0).bytes_per_sample == opened(whole, logits(), 0).bytes_per_sample / 2 == 20


def test_measuring_gives_the_weight_of_each_kind(make_service: Callable[..., TeacherService]) -> None:
    measured = make_service().measure(KINDS)
    assert measured["seconds_per_sample"] > 0
    assert all(measured["compute_seconds"][kind.id] > 0 for kind in KINDS)
    service = make_service()
    service.fill(0, KINDS)
    for kind in KINDS:
        assert measured["bytes_per_sample"][kind.id] == opened(service, kind, 0).bytes_per_sample
    assert make_service(dtype="float16").measure([logits()])["bytes_per_sample"] == {logits().id: 20}


def test_a_sealed_input_gradient_is_of_the_samples_own_class(
    make_service: Callable[..., TeacherService], trained: tuple[Path, LoadedTeacher]
) -> None:
    service, model = make_service(), trained[1].model
    service.fill(0, [input_gradient()])
    images = service.filler.view_images(0, np.arange(ROWS)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(images), service.filler._labels, reduction="sum")
    torch.testing.assert_close(rows_of(service, input_gradient(), 0), torch.autograd.grad(loss, images)[0])
    answer = service.forward(images.detach().numpy(), {"it": input_gradient()}, service.filler._labels.numpy())
    torch.testing.assert_close(torch.from_numpy(answer["it"]), rows_of(service, input_gradient(), 0))


class Taught(Method):
    """Follows logits and a map."""

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits(), "energy": reduced(energy, LAYER)}

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> list[str]:
        return [LAYER]

    def loss(self, step: Step) -> dict[str, Tensor]:
        taught = (step.logits - step.teacher["logits"]).square().mean()
        shaped = (energy(step.student_features[LAYER]) - step.teacher["energy"]).square().mean()
        return {**super().loss(step), "taught": taught, "shaped": shaped}


@pytest.fixture
def train(
    make_service: Callable[..., TeacherService], trained: tuple[Path, LoadedTeacher], digits: ImageData, views: Views
) -> Callable[[str], Trainer]:
    def run(way: str) -> Trainer:
        method, service = Taught(), make_service()
        teacher = describe(trained[1].model, name="lenet", input_shape=digits.input_shape)
        kinds = method.knowledge(teacher, teacher)

        def open_views(view: int, _names: Collection[str] | None, reading: Reading | None) -> dict[str, View]:
            service.fill(view, kinds.values(), reading)
            return {name: opened(service, kind, view) for name, kind in kinds.items()}

        trainer = Trainer(
            new_student=lambda: build_model("lenet", num_classes=10, input_shape=(1, 8, 8)),
            method=method,
            data=digits,
            views=views,
            training=Training(batch_size=40),
            epochs=4,
            teacher=CachedKnowledge(open_views) if way == "cached" else InlineKnowledge(trained[1].model, kinds),
            teacher_architecture=teacher,
        )
        trainer.fit()
        return trainer

    return run


def test_a_student_is_the_same_bit_for_bit_cached_or_inline(
    train: Callable[[str], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of one shape: how a matrix product is rounded depends on it.
    monkeypatch.setattr(view_filler, "FILL_BATCH", 40)
    cached, inline = (train(way).student.state_dict() for way in ("cached", "inline"))
    assert all(torch.equal(cached[name], inline[name]) for name in cached)


def test_the_size_of_the_teachers_batches_matters_by_rounding_alone(train: Callable[[str], Trainer]) -> None:
    cached, inline = train("cached"), train("inline")
    assert cached.curve[-1]["train_loss"] == pytest.approx(inline.curve[-1]["train_loss"], rel=1e-3)


def test_what_is_drawn_for_a_sample_is_the_same_inline_and_cached_and_another_in_each_view(
    make_service: Callable[..., TeacherService],
    trained: tuple[Path, LoadedTeacher],
    digits: ImageData,
    views: Views,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(view_filler, "FILL_BATCH", 40)
    kind = TopK(2, 3).of(logits(), 10)
    assert kind.draws == 3
    service = make_service()
    inline = InlineKnowledge(trained[1].model, {"logits": kind})
    drawn = []
    for view in (0, 1):
        service.fill(view, [kind])
        inline.begin_epoch(view)
        indices = torch.arange(40, 80)
        images = digits.normalise(views.augment(digits.train.images, indices, view))
        stored = opened(service, kind, view).gather(indices)
        assert torch.equal(inline.gather(indices, images)["logits"], stored)
        drawn.append(stored[:, 5:])
    assert not torch.equal(*drawn)


def huge(output: Tensor) -> Tensor:
    """Beyond float16, within float32."""
    return output.flatten(1)[:, :2] * 0 + 1e5


def test_knowledge_beyond_float16_is_refused_and_float32_stores_it(
    make_service: Callable[..., TeacherService],
) -> None:
    kind = reduced(huge, LAYER)
    with pytest.raises(UsageError, match=r"knowledge.dtype must hold the teacher's huge\(relu1\), whose values reach 1e\+05"):
        make_service(dtype="float16").fill(0, [kind])
    service = make_service()
    assert service.measure([kind])["largest"][kind.id] == 1e5
    service.fill(0, [kind])
    assert torch.equal(rows_of(service, kind, 0), torch.full((ROWS, 2), 1e5))


def test_a_view_is_filled_although_memory_holds_no_whole_batch(
    make_service: Callable[..., TeacherService], tmp_path: Path
) -> None:
    """Input gradients of a large teacher take tens of gigabytes for a batch; a refusal would end every trial of the sweep."""
    service = make_service()
    tried: list[int] = []

    def limited(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if len(inputs[0]) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = service.teacher.model.register_forward_pre_hook(limited)
    try:
        service.fill(0, [logits(), input_gradient()])
    finally:
        handle.remove()
    assert sum(size > 20 for size in tried) == 2, "memory runs out for 64 and for 32 samples, and never again"
    (tmp_path / "other").mkdir()
    whole = make_service(KnowledgeStore(tmp_path / "other"))
    whole.fill(0, [logits(), input_gradient()])
    for kind in (logits(), input_gradient()):
        torch.testing.assert_close(rows_of(service, kind, 0), rows_of(whole, kind, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("device", "rows"), [("cpu", {160, 64, 2}), ("cpu:0", {160, 2})])
def test_costs_on_a_gpu_are_measured_on_batches_that_fill_it(
    make_service: Callable[..., TeacherService], device: str, rows: set[int]
) -> None:
    """A GPU takes as long for 64 samples as for 512: kinds would seem eight times as expensive as they are in a trial."""
    filler = make_service(device=device).filler
    measured: set[int] = set()
    compute = filler._compute

    def watch(reader: Any, kinds: Any, images: Tensor, *arguments: Any) -> dict[str, Tensor]:
        measured.add(len(images))
        return compute(reader, kinds, images, *arguments)

    filler._compute = watch  # type: ignore[assignment]
    assert filler.measure([logits()])["compute_seconds"][logits().id] > 0
    assert measured == rows
