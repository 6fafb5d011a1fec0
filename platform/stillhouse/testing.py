"""For authors of methods: a step to call a loss with, reference numbers to check it against, and the conformance suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.distill.method import Stage, Step

# Relative tolerance, and absolute tolerance as a share of the largest reference value, by precision.
_TOLERANCES = {torch.float64: (1e-9, 1e-12), torch.float32: (2e-5, 1e-6)}


def make_step(
    *,
    student_logits: Tensor | None,
    labels: Tensor | None = None,
    teacher: Mapping[str, Tensor] | None = None,
    **fields: Any,
) -> Step:
    """A step as the trainer makes it, with everything that a test does not care for filled in.

    Args:
        student_logits: [B, C], or None for a stage that ends before them; `labels` is needed then.
        labels: [B] int64; zeros by default.
        teacher: {name: [B, ...]} of what the method's `knowledge` names.
        fields: any other field of `Step`.
    """
    if labels is None:
        assert student_logits is not None, "without logits the labels say how large the batch is"
        labels = torch.zeros(len(student_logits), dtype=torch.int64)
    values: dict[str, Any] = {
        "images": torch.zeros(len(labels), 1, 8, 8),
        "labels": labels,
        "targets": labels,
        "indices": torch.arange(len(labels)),
        "student": nn.Identity(),
        "student_logits": student_logits,
        "student_features": {},
        "teacher": teacher or {},
        "modules": {},
        "stage": Stage(epochs=1),
        "epoch": 0,
        "progress": 0.0,
        "seed": 0,
    }
    return Step(**(values | fields))


class ReferenceCase:
    """Numbers of a published implementation: inputs, what it made of them, the gradients.

    Args:
        path: an .npz file with `in.*`, `hp.*`, `w.*`, `rnd.*` and, for both precisions, `out.*` and `grad.*`.
        dtype: the precision in which the case is run: float64 or float32.
    """

    def __init__(self, path: str | Path, dtype: torch.dtype) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._arrays = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
        self._dtype = dtype
        self._suffix = "f64" if dtype == torch.float64 else "f32"
        self._inputs: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The array `name` in the case's precision; one that has a reference gradient collects its gradient."""
        if name not in self._inputs:
            array = self._arrays[name].clone()
            array = array.to(self._dtype) if array.is_floating_point() else array
            self._inputs[name] = array.requires_grad_(f"grad.{name.removeprefix('in.')}.{self._suffix}" in self._arrays)
        return self._inputs[name]

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
