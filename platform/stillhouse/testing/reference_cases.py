"""Numbers of published implementations that a loss is compared with."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Relative tolerance, and absolute tolerance as a share of the largest reference value, by precision.
_TOLERANCES = {torch.float64: (1e-9, 1e-12), torch.float32: (2e-5, 1e-6)}


class ReferenceCase:
    """Numbers of one published implementation: its inputs, results and gradients.

    Args:
        path: an .npz file with inputs `in.*`, hyper-parameters `hp.*`, weights `w.*` and random draws `rnd.*`; results `out.*`
            and gradients `grad.*` exist in both precisions, with the suffixes `.f64` and `.f32`.
        dtype: the precision in which the case is run: float64 or float32.
    """

    def __init__(self, path: str | Path, dtype: torch.dtype) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            numbers = {name: array for name, array in arrays.items() if array.dtype.kind != "U"}
        self._arrays = {name: torch.from_numpy(np.asarray(array)) for name, array in numbers.items()}
        self._dtype = dtype
        self._suffix = "f64" if dtype == torch.float64 else "f32"
        self._inputs: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The array `name` in the case's precision; it requires gradients if the case has a reference gradient for it."""
        if name not in self._inputs:
            array = self._arrays[name].clone()
            array = array.to(self._dtype) if array.is_floating_point() else array
            self._inputs[name] = array.requires_grad_(f"grad.{name.removeprefix('in.')}.{self._suffix}" in self._arrays)
        return self._inputs[name]

    def has(self, name: str) -> bool:
        """Whether the case has an array called `name`."""
        return name in self._arrays

    def numbers(self, name: str) -> list[int]:
        """The numbers after `name`, in order: 0, 1, 2 for `in.s_feat` if there are `in.s_feat0` to `in.s_feat2`."""
        ends = (array.removeprefix(name) for array in self._arrays if array.startswith(name))
        return sorted(int(end) for end in ends if end.isdigit())

    def number(self, name: str) -> float:
        """The hyper-parameter `hp.<name>`."""
        return float(self._arrays[f"hp.{name}"])

    def check(self, result: Tensor, name: str = "out.loss") -> None:
        """Compares `result` with the reference's `name`.

        Raises:
            AssertionError: they differ by more than rounding.
        """
        reference = self._arrays[f"{name}.{self._suffix}"]
        rtol, share = _TOLERANCES[self._dtype]
        torch.testing.assert_close(result.detach(), reference, rtol=rtol, atol=share * float(reference.abs().max()))

    def check_gradients(self, loss: Tensor, *names: str) -> None:
        """Compares the gradients of `loss` with respect to the named inputs (`s_logits`) with the reference's.

        Raises:
            AssertionError: they differ by more than rounding.
        """
        gradients = torch.autograd.grad(loss, [self[f"in.{name}"] for name in names], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            self.check(gradient, f"grad.{name}")
