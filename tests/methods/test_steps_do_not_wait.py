"""No training step of a shipped method waits for a GPU, and all passes of the student have the training's precision.

On a GPU a step of a small student takes about 2 ms, in which the processor only queues work. Whatever needs a tensor's value
(`.item()`, `bool(tensor)`, boolean indexing, whose result's size is a value, a decomposition, whose error flags are read) waits
until the queue is empty. Here the calls are counted on a CPU, for every method that is found, with every choice that it offers.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse import methods
from stillhouse.distill.method import Method, Step, Update
from stillhouse.distill.optimiser import Optimisers
from stillhouse.testing import method_trial, suiting_trial

READS = {
    name: getattr(Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
}
SENDS = {torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor}
SIZED_BY_VALUES = {
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.repeat_interleave.Tensor,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten.unique_consecutive.default,
    torch.ops.aten.bincount.default,
}
DECOMPOSITIONS = {
    torch.ops.aten._linalg_eigh.default,
    torch.ops.aten._linalg_svd.default,
    torch.ops.aten.linalg_eig.default,
    torch.ops.aten.linalg_lstsq.default,
    torch.ops.aten._linalg_check_errors.default,
}
"""They read on the processor whether they have succeeded; the last one does so for inverses, solutions and Cholesky factors."""
ALLOWED = {"kd_svd": {"aten._linalg_eigh.default"}}
"""By method, the waits that cannot be avoided: PyTorch has no function for eigenvectors that leaves its error flags on the
device, and the decomposition takes longer than the wait (decision 36)."""


class _Calls(TorchFunctionMode):
    """Notes reading and sending calls of Python."""

    def __init__(self, noted: list[str]) -> None:
        self._noted = noted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS.values() or (func in SENDS and not isinstance(args[0], Tensor)):
            self._noted.append(getattr(func, "__name__", str(func)))
        if func is Tensor.to and any(str(each) == "cpu" for each in [*args[1:], *(kwargs or {}).values()]):
            self._noted.append("to the CPU")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and any(isinstance(part, list) for part in _parts(args[1])):
            self._noted.append("an index that is a list")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Notes operators whose result depends on values that only the device knows."""

    def __init__(self, noted: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted = noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)
        if (
            func in SIZED_BY_VALUES
            or func in DECOMPOSITIONS
            or (masks and any(each is not None and each.dtype == torch.bool for each in args[1]))
        ):
            self._noted.append(str(func))
        return func(*args, **(kwargs or {}))


def _parts(index: Any) -> Sequence[Any]:
    return index if isinstance(index, tuple) else (index,)


@contextmanager
def counted(noted: list[str]) -> Iterator[None]:
    with _Calls(noted), _Operators(noted):
        yield


def test_every_way_to_wait_is_counted() -> None:
    values = torch.arange(3.0)
    ways: dict[str, Callable[[], Any]] = {
        "item": values[0].item,
        "bool": lambda: bool(values[0] > 1),
        "float": lambda: float(values[0]),
        "tolist": values.tolist,
        "mask": lambda: values[values > 1],
        "mask that is written": lambda: values.__setitem__(values > 1, 0.0),
        "nonzero": (values > 1).nonzero,
        "Python data": lambda: torch.tensor([1.0]),
        "list": lambda: values[[0, 2]],
        "cpu": values.cpu,
        "to the CPU": lambda: values.to("cpu"),
        "NumPy": lambda: torch.from_numpy(values.numpy()),
        "eigenvectors": lambda: torch.linalg.eigh(torch.eye(2)),
        "singular values": lambda: torch.linalg.svd(torch.eye(2)),
        "inverse": lambda: torch.linalg.inv(torch.eye(2)),
        "Cholesky factor": lambda: torch.linalg.cholesky(torch.eye(2)),
        "unique": values.unique,
        "counts": lambda: torch.ones(2, dtype=torch.int64).bincount(),
    }
    for name, way in ways.items():
        noted: list[str] = []
        with counted(noted):
            way()
        assert noted, name
    with counted(noted := []):
        values.gather(0, torch.zeros(1, dtype=torch.int64)).clamp(0, 1).sum()
    assert noted == []


def _choices(name: str) -> Iterator[dict[str, Any]]:
    """Settings that each change one hyper-parameter: to another of its choices, to the other boolean, or away from 0."""
    cls = methods.find(name)
    for hyperparameter, rule in cls.hyperparameters().items():
        default = cls.defaults()[hyperparameter]
        others: Sequence[Any] = rule.choices or ((not default,) if isinstance(default, bool) else ())
        if not others and isinstance(default, int | float) and default == 0:
            others = (_AWAY_FROM_ZERO,)
        for value in others:
            if value != default:
                yield {hyperparameter: value}


_AWAY_FROM_ZERO = 0.1


def _variants() -> list[Any]:
    return [
        pytest.param(name, json.dumps(changes), id=name + (f" {changes}" if changes else ""))
        for name in methods.names()
        for changes in [{}, *_choices(name)]
    ]


@dataclass(frozen=True)
class Observed:
    """What a training showed.

    Attributes:
        waits: by epoch and step, the calls that would wait for a GPU.
        passes: of each forward pass in training of the student and of networks that are evaluated beside it, whether it had the
            training's precision.
    """

    waits: Mapping[tuple[int, int], list[str]]
    passes: Sequence[bool]


@functools.cache
def _observe(name: str, settings: str) -> Observed:
    """A training in bfloat16, as on a GPU; no setting makes it diverge at this rate."""
    method = methods.find(name).shortened(**json.loads(settings))
    method_trial.trained_teacher(suiting_trial(method).teacher)  # which other tests have too, with its usual recipe
    waits: dict[tuple[int, int], list[str]] = {}
    passes: list[bool] = []
    step, apply = type(method).step, Optimisers.apply

    def counted_step(self: Method, given: Step, update: Update) -> dict[str, Tensor]:
        place = (given.epoch, sum(epoch == given.epoch for epoch, _ in waits))
        with counted(waits.setdefault(place, [])):
            return step(self, given, update)

    def uncounted(self: Optimisers, *groups: str) -> None:
        # An optimiser's step counters are on the processor, and a fused one reads nothing.
        own = list(waits.values())[-1]
        before = len(own)
        apply(self, *groups)
        del own[before:]

    def note(student: nn.Module, _inputs: Any) -> None:
        if student.training:
            passes.append(torch.is_autocast_enabled("cpu"))

    recipe = {"learning_rate": 1e-4, "mixed_precision": "bfloat16", "mixed_passes": "all"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method_trial, "TRAINING", method_trial.TRAINING.model_copy(update=recipe))
        patch.setattr(type(method), "step", counted_step)
        patch.setattr(Optimisers, "apply", uncounted)
        trainer = suiting_trial(method).trainer()
        for network in (trainer.student, *trainer.peers().values()):
            network.register_forward_pre_hook(note)
        trainer.fit()
    return Observed(waits, passes)


@pytest.mark.parametrize(("name", "settings"), _variants())
def test_no_step_of_a_method_waits_for_the_device(name: str, settings: str) -> None:
    """Except in the first epoch, and in the first step of a later one: some methods look at a whole epoch and change course."""
    waits = _observe(name, settings).waits
    assert len(waits) == 4 * 4
    found = {place: set(noted) - ALLOWED.get(name, set()) for place, noted in waits.items() if place[0] > 0 and place[1] > 0}
    assert {place: noted for place, noted in found.items() if noted} == {}


@pytest.mark.parametrize(("name", "settings"), _variants())
def test_all_passes_of_the_student_in_training_have_the_trainings_precision(name: str, settings: str) -> None:
    passes = _observe(name, settings).passes
    assert all(passes), f"{passes.count(False)} of {len(passes)} passes are not in bfloat16; use step.run_network"
