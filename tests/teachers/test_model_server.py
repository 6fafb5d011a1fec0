"""The served model: its answers are those of the model itself, whether calls are merged, split or repeated."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.distill.calls import InlineTeacher, Procedure, ServedTeacher, pull_back, run_teacher
from stillhouse.knowledge import feature, input_gradient, logits
from stillhouse.teachers.call_queue import FairLock
from stillhouse.teachers.model_server import ForwardPassCache, ModelServer

CLASSES = 4


def network(*, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, CLASSES)
    ).to(dtype)


def server(model: nn.Module | None = None, **options: Any) -> ModelServer:
    return ModelServer(network() if model is None else model, lock=FairLock(), **options)


def images(rows: int, seed: int = 1) -> NDArray[Any]:
    return torch.randn(rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).numpy()


class InProcess:
    """The calls of a served teacher, without Ray: read-only arrays go in, arrays come out."""

    def __init__(self, server: ModelServer, caller: str = "trial", *, forget: bool = False) -> None:
        self._server = server
        self._caller = caller
        self._forget = forget
        self._number = 0

    def forward(self, pixels: Tensor, layers: Sequence[str], *, differentiable: bool) -> tuple[Any, Sequence[Tensor]]:
        self._number += 1
        token = f"{self._caller}-{self._number}" if differentiable else None
        answer = self._server.forward(self._caller, read_only(pixels), layers, token)
        return None if self._forget else token, [torch.from_numpy(array) for array in answer]

    def pull_back(self, token: Any, pixels: Tensor, layers: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        arrays = [read_only(gradient) for gradient in gradients]
        return torch.from_numpy(self._server.pull_back(self._caller, read_only(pixels), layers, arrays, token))

    def run(self, procedure: Procedure, tensors: Sequence[Tensor], options: Mapping[str, Any]) -> Sequence[Tensor]:
        answer = self._server.run(self._caller, procedure, [read_only(tensor) for tensor in tensors], options)
        return [torch.from_numpy(array) for array in answer]


def read_only(tensor: Tensor) -> NDArray[Any]:
    """As Ray gives them."""
    array = tensor.detach().numpy().copy()
    array.flags.writeable = False
    return array


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """All calls at once; their answers in order."""
    answers: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        answers[place] = calls[place]()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("forget", [False, True], ids=["kept pass", "computed again"])
def test_a_batch_alone_has_the_very_bits_of_an_inline_teacher(forget: bool) -> None:
    results = []
    served = server()
    for teacher in (InlineTeacher(network()), ServedTeacher(InProcess(served, forget=forget))):
        pixels = torch.from_numpy(images(5)).requires_grad_()
        outputs = teacher(pixels, "2")
        loss = outputs[0].square().sum() + outputs[1].pow(3).sum()
        results.append([*outputs, *torch.autograd.grad(loss, pixels)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    counters = served.counters()
    assert counters["samples_differentiated"] == 5
    assert counters["samples_served"] == (10 if forget else 5), "a kept pass is not computed again"


def test_the_served_gradient_is_that_of_finite_differences() -> None:
    teacher = ServedTeacher(InProcess(server(network(dtype=torch.float64))))
    pixels = torch.from_numpy(images(2)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: teacher(x, "2"), [pixels])


def climb(teacher: Any, pixels: Tensor, classes: Tensor, *, rounds: int) -> tuple[Tensor, Tensor]:
    """Raises the logit of each sample's class; a procedure."""
    for _ in range(rounds):
        pixels = pixels.detach().requires_grad_()
        chosen = teacher(pixels).gather(1, classes.unsqueeze(1))
        (gradient,) = torch.autograd.grad(chosen.sum(), pixels)
        pixels = pixels.detach() + 0.1 * gradient
    return pixels, teacher(pixels).argmax(dim=1)


@pytest.mark.parametrize("rows", [5, 2049], ids=["one piece", "two pieces"])
def test_a_procedure_has_the_results_of_an_inline_teacher_and_counts_every_pass(rows: int) -> None:
    served = server()
    pixels, classes = torch.from_numpy(images(rows)), torch.arange(rows) % CLASSES
    inline = InlineTeacher(network()).run(climb, pixels, classes, rounds=3)
    answer = ServedTeacher(InProcess(served)).run(climb, pixels, classes, rounds=3)
    torch.testing.assert_close(answer[0], inline[0])
    assert answer[1].dtype == torch.int64
    assert torch.equal(answer[1], inline[1])
    assert served.counters()["samples_served"] == 4 * rows
    assert served.counters()["batches_served"] == 1


def test_a_gradient_may_be_requested_twice() -> None:
    remote = server()
    remote.forward("trial", images(3), (), "pass")
    gradient = [np.ones((3, CLASSES), np.float32)]
    first, again = (remote.pull_back("trial", images(3), (), gradient, "pass") for _ in range(2))
    assert np.array_equal(first, again)


def test_merged_calls_get_their_own_rows() -> None:
    lock = FairLock()
    remote = ModelServer(network(), lock=lock, merged_rows=64)
    batches = [images(rows, seed) for seed, rows in enumerate((3, 5, 2, 7))]
    gradients = [np.full((len(batch), CLASSES), 1.0 + place, np.float32) for place, batch in enumerate(batches)]
    with lock:
        waiting = threading.Thread(target=remote.forward, args=("first", images(1), ()))
        waiting.start()
        # The first call waits for the lock; the others wait in the queue.
        wait_until(lambda: remote.queue._now >= 0 and remote.queue._waiting == 1 and not remote.queue._calls)
        answers: list[Any] = []
        collector = threading.Thread(
            target=lambda: answers.extend(
                in_threads(
                    *(lambda n=n: remote.forward(f"{n}", batches[n], ())[0] for n in range(4)),
                    *(lambda n=n: remote.pull_back(f"{n}", batches[n], (), [gradients[n]], None) for n in range(4)),
                )
            )
        )
        collector.start()
        wait_until(lambda: remote.queue._waiting == 9)
    collector.join(30)
    waiting.join(30)
    model = network().eval()
    for place, batch in enumerate(batches):
        pixels = torch.from_numpy(batch).requires_grad_()
        outputs = run_teacher(model, pixels)
        np.testing.assert_allclose(answers[place], outputs[0].detach().numpy(), rtol=1e-5, atol=1e-6)
        expected = pull_back(outputs, pixels, [torch.from_numpy(gradients[place])])
        np.testing.assert_allclose(answers[4 + place], expected.numpy(), rtol=1e-5, atol=1e-6)
    counters = remote.counters()
    assert counters["calls_merged"] == 8
    assert counters["batches_served"] == 3
    assert counters["samples_differentiated"] == 17


def test_knowledge_of_any_kind_is_that_of_the_model() -> None:
    model = network().eval()
    labels = np.array([0, 3, 1])
    kinds = {"logits": logits(), "map": feature("0"), "gradient": input_gradient()}
    answer = server().knowledge("trial", images(3), kinds, labels)
    pixels = torch.from_numpy(images(3)).requires_grad_()
    outputs = model(pixels)
    loss = nn.functional.cross_entropy(outputs, torch.from_numpy(labels), reduction="sum")
    np.testing.assert_array_equal(answer["logits"], outputs.detach().numpy())
    np.testing.assert_array_equal(answer["map"], model[0](pixels).detach().numpy())
    np.testing.assert_allclose(answer["gradient"], torch.autograd.grad(loss, pixels)[0].numpy(), rtol=1e-6)


def test_a_large_batch_is_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.teachers.model_server._PIECE_ROWS", 4)
    remote = server()
    seen: list[int] = []
    remote._model.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    answer = remote.forward("trial", images(10), ())[0]
    assert seen == [4, 4, 2]
    np.testing.assert_allclose(answer, network().eval()(torch.from_numpy(images(10))).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_an_error_belongs_to_the_call_that_made_it() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        server().forward("trial", np.zeros((2, 3, 4, 4), np.float32), ())


def test_cached_passes_are_bounded_and_dropped_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ForwardPassCache(max_bytes=100)
    for name, size in (("a", 60), ("b", 40), ("c", 50), ("too large", 101)):
        kept.store(name, torch.zeros(1), [], size)
    assert [name for name in ("a", "b", "c", "too large") if name in kept] == ["b", "c"]
    assert kept.take("b") is not None
    assert kept.take("b") is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    kept.drop_old()
    assert "c" not in kept


def test_what_a_pass_keeps_is_counted_by_the_sample() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh())
    remote = server(model)
    remote.forward("trial", images(6), (), "pass")
    # The backward pass of a frozen linear layer needs its weights alone, that of tanh its output: 8 floats per sample.
    assert next(iter(remote._pass_bytes.values())) == 8 * 4


def waiting_together(remote: ModelServer, lock: FairLock, *calls: Callable[[], Any]) -> list[Any]:
    """The answers of calls that are all in the queue before the first is computed."""
    answers: list[Any] = []
    with lock:
        first = threading.Thread(target=remote.forward, args=("first", images(1), ()))
        first.start()
        wait_until(lambda: remote.queue._waiting == 1 and not remote.queue._calls)
        others = threading.Thread(target=lambda: answers.extend(in_threads(*calls)))
        others.start()
        wait_until(lambda: remote.queue._waiting == 1 + len(calls))
    others.join(30)
    first.join(30)
    return answers


def test_passes_under_load_are_kept_for_their_gradients() -> None:
    """Calls that wait together are merged on a GPU; the teacher must not compute a pass again for its gradient."""
    lock, tokens = FairLock(), [f"pass-{number}" for number in range(4)]
    remote = ModelServer(network(), lock=lock, merged_rows=64)
    waiting_together(remote, lock, *(lambda t=token: remote.forward(t, images(3), (), t) for token in tokens))
    assert all(token in remote._passes for token in tokens)
    forwarded = remote.samples_forwarded
    gradient = [np.ones((3, CLASSES), np.float32)]
    answers = waiting_together(
        remote, lock, *(lambda t=token: remote.pull_back(t, images(3), (), gradient, t) for token in tokens)
    )
    assert remote.samples_forwarded == forwarded + 1  # that of the first call, which only holds the others up
    pixels = torch.from_numpy(images(3)).requires_grad_()
    expected = pull_back(run_teacher(network().eval(), pixels), pixels, [torch.from_numpy(gradient[0])])
    for answer in answers:
        np.testing.assert_array_equal(answer, expected.numpy())
    assert len(remote._pass_bytes) == 1, "one form of input is measured once"


def test_passes_may_be_merged_where_that_is_faster() -> None:
    lock = FairLock()
    remote = ModelServer(network(), lock=lock, merged_rows=64, merges_passes=True)
    waiting_together(remote, lock, *(lambda n=n: remote.forward(n, images(3), (), n) for n in ("one", "two")))
    assert remote.counters()["calls_merged"] == 2


@pytest.mark.parametrize("token", [None, "pass"])
def test_a_call_that_does_not_fit_into_memory_is_computed_in_smaller_pieces(token: str | None) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, pixels: Tensor) -> Tensor:
            if len(pixels) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            outputs: Tensor = self.inner(pixels)
            return outputs

    remote = server(Small())
    pixels = torch.from_numpy(images(16)).requires_grad_()
    outputs = run_teacher(network().eval(), pixels)
    (answer,) = remote.forward("trial", images(16), (), token)
    np.testing.assert_allclose(answer, outputs[0].detach().numpy(), rtol=1e-5, atol=1e-6)
    gradient = np.ones((16, CLASSES), np.float32)
    expected = pull_back(outputs, pixels, [torch.from_numpy(gradient)])
    np.testing.assert_allclose(
        remote.pull_back("trial", images(16), (), [gradient], token), expected.numpy(), rtol=1e-5, atol=1e-6
    )
