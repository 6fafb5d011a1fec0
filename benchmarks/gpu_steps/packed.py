"""Step 9: K students on one GPU, as K processes, packed into one process, and fused by torch.func.vmap."""

import multiprocessing
import time
from typing import Any

import torch
import torch.nn.functional as F
from gpu_steps.parts import new_model, random_data, synchronise
from gpu_steps.plan import Settings, finish
from torch import Tensor, nn

_BATCH, _RATE, _MOMENTUM = 64, 0.01, 0.9
_WARM_UP = 3
_TARGET = 3.0
"""Times the speed of separate processes that packed trials should reach with 16 of them."""


def compare(settings: Settings) -> dict[str, Any]:
    """Steps per second of all students together, for each number of students; and that packing changes no student."""
    problems: list[str] = []
    figures: dict[str, Any] = {}
    for number in settings.size((1, 4, 16), (2,)):
        steps = settings.size(200, 2)
        row = {"processes": _separate(number, steps, settings)}
        packed, weights = _packed(number, steps, settings)
        row["packed"] = packed
        problems += _differences(weights, steps, settings)
        try:
            row["vmap"] = _fused(number, steps, settings)
        except RuntimeError as error:
            problems.append(f"vmap over {number} students: {str(error).splitlines()[0]}")
        row["packed_over_processes"] = row["packed"] / row["processes"]
        figures[f"{number} students"] = row
    if not settings.tiny:
        figures["reaches_target"] = figures["16 students"]["packed_over_processes"] >= _TARGET
    return finish(problems, figures)


class Student:
    """One student whose step is captured in a CUDA graph on a stream of its own; on a CPU the step runs eagerly.

    Args:
        data: images and labels on the device, shared by all students.
        seed: decides the weights and the order of the samples.
    """

    def __init__(self, data: Any, images: Tensor, labels: Tensor, seed: int, settings: Settings, *, captured: bool) -> None:
        torch.manual_seed(seed)
        self._data, self._images, self._labels = data, images, labels
        self.model = new_model(settings.size("resnet8x4", "resnet8"), data).to(images.device).train()
        self._optimiser = torch.optim.SGD(self.model.parameters(), lr=_RATE, momentum=_MOMENTUM)
        self._order = torch.randint(len(labels), (512, _BATCH), generator=torch.Generator().manual_seed(seed)).to(images.device)
        self._places = self._order[0].clone()
        self._number = 0
        self._stream = torch.cuda.Stream() if images.is_cuda else None
        self._graph: torch.cuda.CUDAGraph | None = None
        if captured and self._stream is not None:
            self._capture()

    def step(self) -> None:
        """One training step, enqueued on the student's stream; returns before it is done."""
        if self._stream is None:
            self._next_batch()
            self._train()
            return
        with torch.cuda.stream(self._stream):
            self._next_batch()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._train()

    def _next_batch(self) -> None:
        self._places.copy_(self._order[self._number % len(self._order)])
        self._number += 1

    def _train(self) -> None:
        loss = F.cross_entropy(self.model(self._data.normalise(self._images[self._places])), self._labels[self._places])
        self._optimiser.zero_grad(set_to_none=False)
        loss.backward()
        self._optimiser.step()

    def _capture(self) -> None:
        """Captures a step after some that warm up, and takes back what these changed."""
        assert self._stream is not None
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                self._train()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._train()
        self._graph = graph
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(before[name])
            # Zeros change a first momentum step in nothing: the buffer becomes the gradient.
            for state in self._optimiser.state.values():
                state["momentum_buffer"].zero_()
        torch.cuda.synchronize()


def _packed(number: int, steps: int, settings: Settings) -> tuple[float, list[dict[str, Tensor]]]:
    """Steps per second of the students in one process, and their weights."""
    data, images, labels = _on_device(settings)
    students = [Student(data, images, labels, seed, settings, captured=True) for seed in range(number)]
    synchronise(settings)
    started = time.perf_counter()
    for _ in range(steps):
        for student in students:
            student.step()
    synchronise(settings)
    rate = number * steps / (time.perf_counter() - started)
    return rate, [{name: tensor.cpu() for name, tensor in student.model.state_dict().items()} for student in students]


def _differences(packed: list[dict[str, Tensor]], steps: int, settings: Settings) -> list[str]:
    """Where the first and the last student differ from the same one alone: on a CPU in any bit, on a GPU by rounding."""
    from stillhouse.testing.tolerance import tolerance_on

    data, images, labels = _on_device(settings)
    # Rounding grows from step to step, so a GPU is compared after a few.
    few = settings.size(_WARM_UP, steps)
    problems = []
    for seed in sorted({0, len(packed) - 1}):
        alone = Student(data, images, labels, seed, settings, captured=False)
        other = packed[seed]
        if not settings.tiny:
            again = Student(data, images, labels, seed, settings, captured=True)
            for _ in range(few):
                again.step()
            synchronise(settings)
            other = {name: tensor.cpu() for name, tensor in again.model.state_dict().items()}
        for _ in range(few):
            alone.step()
        synchronise(settings)
        for name, tensor in alone.model.state_dict().items():
            try:
                tolerance_on(settings.device).assert_repeated(other[name], tensor.cpu(), name)
            except AssertionError as error:
                problems.append(f"student {seed} of {len(packed)}: {error}")
                break
    return problems


def _separate(number: int, steps: int, settings: Settings) -> float:
    """Steps per second of as many processes, all at work at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(number), context.Queue()
    workers = [context.Process(target=_alone, args=(seed, steps, settings, barrier, answers)) for seed in range(number)]
    for worker in workers:
        worker.start()
    spans = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    return number * steps / (max(end for _, end in spans) - min(start for start, _ in spans))


def _alone(seed: int, steps: int, settings: Settings, barrier: Any, answers: Any) -> None:
    """A process of its own with one student and eager steps, as a trial trains."""
    from gpu_steps.replacements import replace_missing

    replace_missing()
    torch.set_num_threads(1)
    student = Student(*_on_device(settings), seed, settings, captured=False)
    for _ in range(settings.size(20, 1)):
        student.step()
    synchronise(settings)
    barrier.wait()
    started = time.time()
    for _ in range(steps):
        student.step()
    synchronise(settings)
    answers.put((started, time.time()))


def _fused(number: int, steps: int, settings: Settings) -> float:
    """Steps per second of the students in one process, fused by `vmap` over their stacked weights."""
    data, images, labels = _on_device(settings)
    students = [Student(data, images, labels, seed, settings, captured=False) for seed in range(number)]
    parameters, buffers = torch.func.stack_module_state([student.model for student in students])
    parameters = {name: tensor.detach() for name, tensor in parameters.items()}
    momenta = [torch.zeros_like(tensor) for tensor in parameters.values()]
    template: nn.Module = students[0].model
    orders = torch.stack([student._order for student in students])

    def loss(weights: dict[str, Tensor], state: dict[str, Tensor], places: Tensor) -> Tensor:
        outputs = torch.func.functional_call(template, (weights, state), (data.normalise(images[places]),))
        return F.cross_entropy(outputs, labels[places])

    gradients_of = torch.func.vmap(torch.func.grad(loss))

    def step(turn: int) -> None:
        gradients = gradients_of(parameters, buffers, orders[:, turn % orders.shape[1]])
        torch._foreach_mul_(momenta, _MOMENTUM)
        torch._foreach_add_(momenta, [gradients[name] for name in parameters])
        torch._foreach_add_(list(parameters.values()), momenta, alpha=-_RATE)

    for turn in range(settings.size(20, 1)):
        step(turn)
    synchronise(settings)
    started = time.perf_counter()
    for turn in range(steps):
        step(turn)
    synchronise(settings)
    return number * steps / (time.perf_counter() - started)


def _on_device(settings: Settings) -> tuple[Any, Tensor, Tensor]:
    """Images and labels on the device, one copy for all students of the process."""
    data = random_data(settings.size(12_800, 128), settings.size(32, 16))
    return data, data.train.images.to(settings.device), data.train.labels.to(settings.device)
