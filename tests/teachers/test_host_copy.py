"""Knowledge on its way from the device: rounded before it travels, and read only after it has arrived."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.data import read_ahead
from stillhouse.device import DeviceClock
from stillhouse.distill import sources
from stillhouse.distill.sources import Finiteness
from stillhouse.errors import TrialError
from stillhouse.teachers import host_copy
from stillhouse.teachers.host_copy import HostCopy


def noted(**values: Tensor) -> Finiteness:
    finiteness = Finiteness()
    finiteness.note(list(values), [], values.values())
    return finiteness


def every_kind_of_number() -> Tensor:
    """Float32 numbers of all magnitudes within float16, and halves of its steps, where rounding must decide."""
    draws = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    magnitudes = 2.0 ** torch.linspace(-26, 14, 4096)
    ties = torch.arange(1.0, 3.0, 2**-11)
    return torch.cat([draws * magnitudes, ties, -ties, torch.tensor([0.0, -0.0, 65504.0, 2**-24, 2**-25])])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_have_the_bits_that_numpy_gives_them(dtype: str) -> None:
    values = every_kind_of_number()
    copy = HostCopy({"a": values}, dtype, noted(a=values), DeviceClock("cpu"))
    copy.wait()
    assert copy.rows("a").dtype == np.dtype(dtype)
    assert copy.rows("a").tobytes() == values.numpy().astype(dtype).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_flags_and_whole_numbers_become_numbers_of_the_format(dtype: str) -> None:
    values = {"flags": torch.tensor([True, False]), "whole": torch.tensor([3, -2])}
    copy = HostCopy(values, dtype, noted(**values), DeviceClock("cpu"))
    copy.wait()
    assert copy.rows("flags").tolist() == [1.0, 0.0]
    assert copy.rows("whole").tolist() == [3.0, -2.0]
    assert {copy.rows(name).dtype for name in values} == {np.dtype(dtype)}


def test_what_was_too_large_for_the_format_is_known_by_its_size() -> None:
    values = torch.tensor([[1.0, -1e5]])
    half = HostCopy({"a": values}, "float16", noted(a=values), DeviceClock("cpu"))
    assert half.largest("a") == 1e5
    assert HostCopy({"a": values}, "float32", noted(a=values), DeviceClock("cpu")).largest("a") is None


def test_values_that_are_not_finite_are_found_when_they_have_arrived() -> None:
    values = torch.tensor([1.0, float("nan")])
    copy = HostCopy({"a": values}, "float32", noted(a=values), DeviceClock("cpu"))
    with pytest.raises(TrialError, match=r"not finite \(a\)"):
        copy.wait()


def test_float16_travels_as_two_bytes_a_value_and_flags_travel_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[torch.dtype, int]] = []

    def send(value: Tensor) -> Tensor:
        sent.append((value.dtype, value.numel()))
        return value

    monkeypatch.setattr(host_copy, "to_host", send)
    monkeypatch.setattr(sources, "to_host", send)
    values = torch.ones(8, 3)
    HostCopy({"a": values}, "float16", noted(a=values), DeviceClock("cpu"))
    assert sent == [(torch.float16, 24), (torch.float32, 1), (torch.bool, 1)]


@dataclasses.dataclass
class OnGpu:
    """A tensor on a GPU, as far as a copy of it is concerned."""

    dtype: torch.dtype = torch.float16
    shape: tuple[int, ...] = (2, 3)
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cuda"))


def test_a_copy_from_a_gpu_is_queued_into_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Pinned:
        def copy_(self, source: Any, *, non_blocking: bool) -> "Pinned":
            calls.append((source, non_blocking))
            return self

    def pinned_like(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Pinned:
        calls.append((shape, dtype, device.type))
        return Pinned()

    monkeypatch.setattr(read_ahead, "pinned_like", pinned_like)
    value: Any = OnGpu()
    assert isinstance(read_ahead.to_host(value), Pinned)
    assert calls == [((2, 3), torch.float16, "cuda"), (value, True)]
    on_cpu = torch.ones(2)
    assert read_ahead.to_host(on_cpu) is on_cpu
