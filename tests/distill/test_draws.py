"""The numbers that a step draws on a GPU, computed on a CPU: a published hash, their distributions, whole batches and parts."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.data.hashing import hash_counters
from stillhouse.distill.draws import DeviceDraws, hash_counters_on
from stillhouse.distill.method import Stage, Step

CPU = torch.device("cpu")


@pytest.mark.parametrize("key", [0, 1, 0x9E3779B97F4A7C15, 2**64 - 1])
def test_the_hash_has_the_bits_of_the_one_on_the_processor(key: int) -> None:
    counters = np.concatenate([np.arange(1000), [2**31, 2**40, 2**62]])
    expected = hash_counters(key, counters).view(np.int64)
    assert np.array_equal(hash_counters_on(key, torch.from_numpy(counters)).numpy(), expected)


def test_the_mixer_is_splitmix64() -> None:
    """The first outputs for seed 0 of the published generator, which adds its constant before it mixes."""
    found = hash_counters_on(0, torch.tensor([1, 2, 3])).numpy().view(np.uint64)
    assert [hex(word) for word in found] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_draws_have_their_distributions() -> None:
    draws = DeviceDraws(5, CPU)
    uniform, normal, whole = draws.uniform(200, 1000), draws.normal(200, 1000), draws.integers(3, 200, 1000)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    # Standard errors at 200,000 draws are 0.0006, 0.0022 and 0.0016; limits are four of them.
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.0026)
    assert float(normal.mean()) == pytest.approx(0, abs=0.009)
    assert float(normal.std()) == pytest.approx(1, abs=0.0065)
    assert float((normal.abs() < 1).float().mean()) == pytest.approx(0.682689, abs=0.0042)
    assert [float((whole == value).float().mean()) for value in range(3)] == pytest.approx([1 / 3] * 3, abs=0.0042)
    assert normal.isfinite().all()


def test_no_two_calls_of_a_step_and_no_two_steps_draw_the_same_numbers() -> None:
    one, other = DeviceDraws(5, CPU), DeviceDraws(6, CPU)
    drawn = [one.uniform(50), one.uniform(50), one.integers(2**24, 50) / 2**24, other.uniform(50)]
    for place, values in enumerate(drawn):
        assert all(not torch.isin(values, later).any() for later in drawn[place + 1 :])
    assert torch.equal(DeviceDraws(5, CPU).uniform(50), drawn[0])


def step(rows: slice, part: tuple[int, int] | None) -> Step:
    indices = torch.arange(8)[rows]
    empty = torch.empty(len(indices), 1, 2, 2)
    stage = Stage(epochs=1)
    none: dict[str, Tensor] = {}
    return Step(
        images=empty, labels=indices, targets=indices, indices=indices, student=nn.Identity(), outputs=none, stage=stage,
        student_features=none, teacher=none, modules={}, epoch=0, progress=0.0, seed=9, part=part,
    )  # fmt: skip


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("name", ["normal", "uniform", "integers"])
def test_a_samples_draws_in_a_part_are_those_in_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, name: str, on_device: bool
) -> None:
    monkeypatch.setattr(Step, "_on_device", on_device)
    bound = (7,) if name == "integers" else ()
    whole = getattr(step(slice(None), None), name)(*bound, 8, 3)
    parts = [getattr(step(slice(first, last), (first, 8)), name)(*bound, last - first, 3) for first, last in ((0, 3), (3, 8))]
    assert torch.equal(torch.cat(parts), whole)


def test_on_a_cpu_the_numbers_are_those_of_torchs_generator() -> None:
    generator = torch.Generator().manual_seed(9)
    one = step(slice(None), None)
    assert torch.equal(one.normal(8, 2), torch.randn(8, 2, generator=generator))
    assert torch.equal(one.integers(5, 4), torch.randint(5, (4,), generator=generator))
    assert torch.equal(one.uniform(3), torch.rand(3, generator=generator))
    assert dataclasses.fields(one)
