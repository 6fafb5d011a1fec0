"""Ways to the same knowledge that need no cluster."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.data.uploaded_order import UploadedOrder
from stillhouse.device import Float32Precision
from stillhouse.distill import sources
from stillhouse.distill.sources import CachedKnowledge, InlineKnowledge, compute_knowledge, layers_of
from stillhouse.errors import TrialError
from stillhouse.knowledge import feature, input_gradient, logits, reduced
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import NotReady, View
from stillhouse.models.batch_parts import CPU_ROWS
from stillhouse.models.features import FeatureReader, UnreadableLayer

IMAGES = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def teacher() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_an_inline_teacher_answers_in_evaluation_mode_without_gradients() -> None:
    model = teacher().train()
    knowledge = InlineKnowledge(model, {"logits": logits(), "hidden": feature("0"), "squared": reduced(torch.square)})
    gathered = knowledge.gather(torch.arange(6), IMAGES)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(gathered["logits"], model.eval()(IMAGES))
    assert torch.equal(gathered["hidden"], model[0](IMAGES))
    assert torch.equal(gathered["squared"], gathered["logits"].square())
    assert not any(value.requires_grad for value in gathered.values())
    assert torch.equal(model.state_dict()["1.running_mean"], torch.zeros(4))
    assert knowledge.samples_forwarded == 6


def test_the_layers_of_several_kinds_are_read_once_each() -> None:
    kinds = {"a": feature("0"), "b": reduced(torch.maximum, "0", "1"), "c": logits()}
    assert layers_of(kinds) == ["0", "1"]


class Squares(nn.Module):
    """Logits (x0^2, 0) of inputs [B, 1], with the sizes of the batches that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        return torch.cat([images.square(), torch.zeros_like(images)], 1)


def beside(outputs: Tensor, draws: Tensor) -> Tensor:
    return torch.cat([outputs, draws], 1)


def test_a_large_batch_is_computed_in_pieces_that_no_sample_notices() -> None:
    model, count = Squares(), 2 * CPU_ROWS + 3
    images, labels = torch.linspace(-1, 1, count, dtype=torch.float64)[:, None], torch.arange(count) % 2
    places = torch.arange(count).flip(0)
    drawn = Knowledge(reduction=beside, draws=2)
    kinds = {"logits": logits(), "gradient": input_gradient(), "drawn": drawn}
    with FeatureReader(model) as reader:
        computed = compute_knowledge(reader, kinds, images, labels, (5, places))
        (alone,) = compute_knowledge(reader, {"drawn": drawn}, images[-1:], None, (5, places[-1:]))["drawn"]
    assert model.asked == [*(2 * [CPU_ROWS]), *(2 * [CPU_ROWS]), 3, 3, 1]  # the gradient takes a pass of its own
    assert torch.equal(computed["logits"][:, :1], images.square())
    # d/dx of -log softmax((x^2, 0))[label], by hand: 2x (sigmoid(x^2) - 1) for class 0, 2x sigmoid(x^2) for class 1.
    expected = 2 * images * (images.square().sigmoid() - (labels == 0)[:, None].double())
    torch.testing.assert_close(computed["gradient"], expected)
    assert torch.equal(computed["drawn"][-1], alone)


def test_no_samples_are_no_knowledge() -> None:
    with FeatureReader(teacher().eval()) as reader:
        assert compute_knowledge(reader, {"logits": logits()}, IMAGES[:0])["logits"].shape == (0, 2)


def test_a_layer_that_is_overwritten_by_the_next_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    with pytest.raises(UnreadableLayer):
        InlineKnowledge(model, {"hidden": feature("0")}).gather(torch.arange(6), IMAGES)


def sealed(store: KnowledgeStore, view: int, dtype: str) -> View:
    rows = torch.arange(12.0).view(6, 2) + 100 * view
    identity = {"view": view, "dtype": dtype}
    with store.writer(identity, rows=6, shape=(2,), dtype=dtype) as writer:
        missing = np.flatnonzero(writer.missing)
        writer.put(missing, rows.numpy()[missing])
        writer.commit()
        writer.seal()
    return store.open(identity)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float16", 2)])
def test_cached_knowledge_is_float32_of_the_epochs_view_and_is_counted(tmp_path: Path, dtype: str, width: int) -> None:
    store = KnowledgeStore(tmp_path)
    knowledge = CachedKnowledge(lambda view, _names, _reading: {"logits": sealed(store, view, dtype)})
    for view in (1, 0):
        knowledge.begin_epoch(view)
        rows = knowledge.gather(torch.tensor([4, 0, 4]), IMAGES)["logits"]
        assert rows.dtype == torch.float32
        assert (rows - 100 * view).tolist() == [[8, 9], [0, 1], [8, 9]]
    assert knowledge.samples_gathered == 6
    assert knowledge.bytes_gathered == 6 * 2 * width


def test_a_batch_waits_for_its_own_rows_alone(tmp_path: Path) -> None:
    store = KnowledgeStore(tmp_path)
    rows = torch.arange(12.0).view(6, 2)
    with store.writer({}, rows=6, shape=(2,), dtype="float32") as writer:
        waited: list[list[int]] = []

        def open_views(*_arguments: object) -> dict[str, View]:
            return {"logits": store.follow({})}

        def await_rows(indices: Tensor) -> dict[str, View]:
            waited.append(indices.tolist())
            writer.put(indices.numpy(), rows[indices].numpy())
            writer.commit()
            return open_and_learn(indices)

        def open_and_learn(indices: Tensor) -> dict[str, View]:
            views = open_views()
            assert views["logits"].ready(indices)
            return views

        knowledge = CachedKnowledge(open_views, await_rows)
        knowledge.begin_epoch(0)
        for batch in ([5, 1], [1, 5], [0, 2]):
            wanted = torch.tensor(batch)
            assert torch.equal(knowledge.gather(wanted, IMAGES)["logits"], rows[wanted])
        assert waited == [[5, 1], [0, 2]]
        assert knowledge.wait_seconds > 0


def test_rows_that_nobody_waits_for_are_an_error_rather_than_zeros(tmp_path: Path) -> None:
    store = KnowledgeStore(tmp_path)
    with store.writer({}, rows=6, shape=(2,), dtype="float32"):
        knowledge = CachedKnowledge(lambda *_arguments: {"logits": store.follow({})})
        knowledge.begin_epoch(0)
        with pytest.raises(NotReady):
            knowledge.gather(torch.tensor([0]), IMAGES)


LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


def test_an_input_gradient_is_of_each_samples_own_loss_at_a_teacher_in_evaluation_mode() -> None:
    model = teacher().train()
    knowledge = InlineKnowledge(model, {"gradient": input_gradient(), "logits": logits()}, LABELS)
    gathered = knowledge.gather(torch.tensor([4, 0, 5]), IMAGES[[4, 0, 5]])
    for row, place in zip(gathered["gradient"], (4, 0, 5), strict=True):
        alone = IMAGES[place : place + 1].clone().requires_grad_()
        loss = nn.functional.cross_entropy(model.eval()(alone), LABELS[place : place + 1])
        torch.testing.assert_close(row, torch.autograd.grad(loss, alone)[0][0])
    assert torch.equal(gathered["logits"], model(IMAGES[[4, 0, 5]]))
    assert not any(value.requires_grad for value in gathered.values())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_reduction_of_the_input_gradient_is_made_at_the_teacher() -> None:
    whole, squared = (
        InlineKnowledge(teacher(), {"it": kind}, LABELS).gather(torch.arange(6), IMAGES)["it"]
        for kind in (input_gradient(), input_gradient(torch.square))
    )
    assert torch.equal(squared, whole.square())


def test_only_the_named_knowledge_is_computed_and_none_costs_no_forward_pass() -> None:
    knowledge = InlineKnowledge(teacher(), {"big/logits": logits(), "big/hidden": feature("0")})
    knowledge.begin_epoch(0, ("hidden",))
    assert set(knowledge.gather(torch.arange(6), IMAGES)) == {"big/hidden"}
    knowledge.begin_epoch(0, ("other",))
    assert knowledge.gather(torch.arange(6), IMAGES) == {}
    assert knowledge.samples_forwarded == 6


def test_what_is_no_number_before_a_reduction_that_hides_it_is_seen() -> None:
    model = teacher()
    with torch.no_grad():
        model[3].get_parameter("weight").fill_(float("inf"))
    with pytest.raises(TrialError, match=r"the teacher's outputs are not finite \(logits\); check its weights"):
        InlineKnowledge(model, {"signs": reduced(torch.sign, "0")}).gather(torch.arange(6), IMAGES)


def convolutions() -> Any:
    """PyTorch's settings for the convolutions of a GPU."""
    return getattr(torch.backends.cudnn, "conv")  # noqa: B009


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_knowledge_is_computed_in_the_precision_that_is_asked_for_also_its_gradients(precision: Float32Precision) -> None:
    """A GPU's default rounds the factors of convolutions to 10 bits; a view could not be verified with another batch size."""
    noted: list[str] = []

    class Noting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            noted.append(convolutions().fp32_precision)
            if input.requires_grad:
                input.register_hook(lambda _gradient: noted.append(convolutions().fp32_precision))
            return super().forward(input)

    before = convolutions().fp32_precision
    kinds = {"logits": logits(), "gradient": input_gradient()}
    with FeatureReader(Noting(2, 3), ()) as reader:
        compute_knowledge(reader, kinds, torch.randn(4, 2), torch.tensor([0, 1, 2, 0]), precision=precision)
    assert noted == [precision] * 3
    assert convolutions().fp32_precision == before


def test_a_teacher_in_the_trial_computes_a_batch_in_parts_once_memory_ran_out() -> None:
    class Small(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if len(input) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(input)

    model = Small(2, 3)
    gathered = InlineKnowledge(model, {"logits": logits()}).gather(torch.arange(8), images := torch.randn(8, 2))
    torch.testing.assert_close(gathered["logits"], nn.functional.linear(images, model.weight, model.bias))


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where reading a value waits for all that was queued."""
    monkeypatch.setattr(sources, "queues_work", lambda _device: True)


@pytest.mark.usefixtures("queued")
@pytest.mark.parametrize("room", [0, 6 * 2 * 4, 1 << 20], ids=["none uploaded", "one uploaded", "both uploaded"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_knowledge_that_is_read_ahead_or_uploaded_has_the_bits_of_each_batch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, room: int
) -> None:
    """Small views are uploaded to a GPU once an epoch; batches of large ones are gathered in the background."""
    monkeypatch.setattr(sources, "_UPLOADED_BYTES", room)
    store = KnowledgeStore(tmp_path)
    wide = 100 * torch.randn(6, 7, generator=torch.Generator().manual_seed(2))
    with store.writer({"wide": 1}, rows=6, shape=(7,), dtype=dtype) as writer:
        writer.put(np.arange(6), wide.numpy())
        writer.commit()
        writer.seal()
    made = [
        CachedKnowledge(lambda view, _names, _reading: {"wide": store.open({"wide": 1}), "logits": sealed(store, view, dtype)})
        for _ in range(2)
    ]
    parts = [torch.tensor(rows) for rows in ([4, 0], [1, 5, 2], [3])]
    for source in made:
        source.begin_epoch(1)
    with made[1].reading(iter(parts), "cpu"):
        for part in [*parts, parts[0]]:
            one, other = (source.gather(part, IMAGES) for source in made)
            assert list(one) == list(other) == ["wide", "logits"]
            assert all(torch.equal(one[name], other[name]) and other[name].dtype == torch.float32 for name in one)
    assert (made[0].samples_gathered, made[0].bytes_gathered) == (made[1].samples_gathered, made[1].bytes_gathered)
    assert not made[1]._uploaded, "the memory is free between epochs"


@pytest.mark.usefixtures("queued")
def test_indices_are_copied_to_the_device_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, parts = KnowledgeStore(tmp_path), [torch.tensor(rows) for rows in ([4, 0], [1, 5, 2], [3])]
    cached = CachedKnowledge(lambda view, _names, _reading: {"logits": sealed(store, view, "float32")})
    inline = InlineKnowledge(teacher(), {"gradient": input_gradient()}, LABELS)
    copies: list[int] = []

    class Counted(UploadedOrder):
        def __init__(self, announced: Iterable[Tensor], device: str) -> None:
            super().__init__(announced, device)
            copies.append(len(self._order))

        def take(self, part: Tensor) -> Tensor:
            taken = super().take(part)
            assert taken.untyped_storage().data_ptr() == self._order.untyped_storage().data_ptr()
            return taken

    monkeypatch.setattr(sources, "UploadedOrder", Counted)
    for source in (cached, inline):
        source.begin_epoch(0)
        with source.reading(iter(parts), "cpu"):
            for part in parts:
                source.gather(part, IMAGES[part])
    assert copies == [6, 6]


@pytest.mark.usefixtures("queued")
def test_a_view_that_is_being_filled_is_read_ahead_and_not_uploaded(tmp_path: Path) -> None:
    store = KnowledgeStore(tmp_path)
    rows = torch.arange(12.0).view(6, 2)
    with store.writer({}, rows=6, shape=(2,), dtype="float32") as writer:

        def await_rows(indices: Tensor) -> dict[str, View]:
            writer.put(indices.numpy(), rows[indices].numpy())
            writer.commit()
            followed = store.follow({})
            assert followed.ready(indices)
            return {"logits": followed}

        knowledge = CachedKnowledge(lambda *_arguments: {"logits": store.follow({})}, await_rows)
        knowledge.begin_epoch(0)
        parts = [torch.tensor(part) for part in ([5, 1], [0, 2], [3, 4])]
        with knowledge.reading(parts, "cpu"):
            assert not knowledge._uploaded
            for part in parts:
                assert torch.equal(knowledge.gather(part, IMAGES)["logits"], rows[part])


@pytest.mark.usefixtures("queued")
def test_a_teacher_that_is_not_finite_is_reported_at_the_end_of_the_epoch_on_a_gpu() -> None:
    """One look at the end instead of one per batch, each of which would wait for the GPU."""
    knowledge = InlineKnowledge(nn.Linear(3, 2), {"logits": logits()})
    bad = IMAGES.clone()
    bad[2, 0] = torch.inf

    def epoch(*batches: Tensor) -> None:
        with knowledge.reading([], "cpu"):
            for images in batches:
                knowledge.gather(torch.arange(6), images)

    with pytest.raises(TrialError, match=r"the teacher's outputs are not finite \(logits\); check its weights"):
        epoch(IMAGES, bad, IMAGES)
    epoch(IMAGES)


def test_a_teacher_that_is_not_finite_is_reported_at_once_on_a_cpu() -> None:
    knowledge = InlineKnowledge(nn.Linear(3, 2), {"logits": logits()})
    with knowledge.reading([], "cpu"), pytest.raises(TrialError, match="not finite"):
        knowledge.gather(torch.arange(1), torch.full((1, 3), torch.inf))
