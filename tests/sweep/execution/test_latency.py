"""The time that a network takes, measured in a worker."""

from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from stillhouse.models.size import Latency
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.execution.latency import measure_models

BROKEN = """
from torch import nn

class Broken(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.last = nn.Linear(4, num_classes)

    def forward(self, images):
        if images.device.type != "meta":
            raise RuntimeError("no such kernel")
        return self.last(images.flatten(1)[:, :4])

def broken(num_classes, input_shape):
    return Broken(num_classes)
"""


def test_a_model_that_cannot_run_has_a_reason_and_the_others_their_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_nets.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    models = {
        "whole": StudentChoice(name="whole", model="mlp", options={"hidden": [4]}),
        "broken": StudentChoice(name="broken", model="broken_nets:broken"),
    }
    threads = torch.get_num_threads()
    found, reasons, _ = measure_models(models, 10, (1, 8, 8), threads, [])
    assert found.keys() == {"whole"}
    times = {"latency_ms", "latency_p95_ms", "latency_batch64_ms"}
    assert found["whole"].keys() == times | {"images_per_second", "peak_memory_bytes", "peak_memory_batch64_bytes"}
    assert found["whole"]["images_per_second"] == 64_000 / found["whole"]["latency_batch64_ms"]
    assert reasons == {"broken": "RuntimeError: no such kernel (broken_nets.py:11)"}


@pytest.mark.parametrize("networks", [1, 300])
def test_all_networks_together_are_given_about_a_minute(networks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def measure(_model: Any, _shape: Any, *, budget_s: float, **_options: Any) -> dict[int, Latency]:
        given.append(budget_s)
        return {size: Latency(size, 1.0, 2.0) for size in (1, 64)}

    monkeypatch.setattr("stillhouse.sweep.execution.latency.measure_latency", measure)
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    models = {str(number): StudentChoice(name="mlp", model="mlp") for number in range(networks)}
    found, _, _ = measure_models(models, 10, (1, 8, 8), torch.get_num_threads(), [])
    assert len(found) == len(given) == networks
    # For each network one image and a batch, and for each of them as long again to warm up.
    assert 0 < 4 * sum(given) <= 60 * 1.001
    assert max(given) <= 1.5


def test_a_student_of_8_bits_has_the_latency_of_its_int8_form_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    models = {
        bits: StudentChoice(name=bits, model="lenet", compress=[{"quantize": {"weight_bits": 8, "activation_bits": int(bits)}}])
        for bits in ("4", "8")
    }
    found, reasons, _ = measure_models(models, 10, (1, 28, 28), torch.get_num_threads(), [])
    assert reasons == {}
    assert "int8_latency_ms" not in found["4"]
    assert 0 < found["8"]["int8_latency_ms"] < 1000
