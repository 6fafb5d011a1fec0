"""Counts on a CPU the calls that would make the processor wait for a GPU.

    with counted(noted := []):
        method.step(step, update)

On a GPU a step of a small student takes about 2 ms, in which the processor only queues work. Whatever needs a tensor's value
(`.item()`, `bool(tensor)`, boolean indexing, whose result's size is a value, a decomposition, whose error flags are read) waits
until the queue is empty, and Python data that becomes a tensor is copied while the processor waits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {
    name: getattr(Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
}
_SENDS = {torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor}
_SIZED_BY_VALUES = {
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
_DECOMPOSITIONS = {
    torch.ops.aten._linalg_eigh.default,
    torch.ops.aten._linalg_svd.default,
    torch.ops.aten.linalg_eig.default,
    torch.ops.aten.linalg_lstsq.default,
    torch.ops.aten._linalg_check_errors.default,
}
"""They read on the processor whether they have succeeded; the last one does so for inverses, solutions and Cholesky factors."""


class _Calls(TorchFunctionMode):
    """Notes reading and sending calls of Python."""

    def __init__(self, noted: list[str]) -> None:
        self._noted = noted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS.values() or (func in _SENDS and not isinstance(args[0], Tensor)):
            self._noted.append(getattr(func, "__name__", str(func)))
        if func is Tensor.to and any(isinstance(each, str) and each == "cpu" for each in [*args[1:], *(kwargs or {}).values()]):
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
            func in _SIZED_BY_VALUES
            or func in _DECOMPOSITIONS
            or (masks and any(each is not None and each.dtype == torch.bool for each in args[1]))
        ):
            self._noted.append(str(func))
        return func(*args, **(kwargs or {}))


def _parts(index: Any) -> Sequence[Any]:
    return index if isinstance(index, tuple) else (index,)


@contextmanager
def counted(noted: list[str]) -> Iterator[None]:
    """A context that adds the name of each such call to `noted`."""
    with _Calls(noted), _Operators(noted):
        yield
