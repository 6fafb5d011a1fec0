"""Latency of the exported forms of a network, measured in a worker."""

import pytest
import ray
import torch

from stillhouse.export import onnx
from stillhouse.provenance import place_of
from stillhouse.spec.late_metrics import EXPORTED_LATENCIES
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.execution.exported_latency import measure_exported

MLP = StudentChoice(name="mlp", model="mlp", options={"hidden": [4]})


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", list)


def measured(
    models: dict[str, StudentChoice], *, place: str | None = None, total_s: float = 60.0
) -> tuple[dict[str, dict[str, float]], list[str]]:
    threads = torch.get_num_threads()
    here = place_of("cpu", threads) if place is None else place
    return measure_exported(models, 10, (1, 8, 8), threads, [], place=here, total_s=total_s)


def test_both_forms_are_measured_for_one_sample_and_for_64() -> None:
    found, reasons = measured({"mlp": MLP})
    assert reasons == []
    assert found["mlp"].keys() == set(EXPORTED_LATENCIES)
    assert all(0 < value < 1000 for value in found["mlp"].values())


def test_without_onnxruntime_there_is_the_program_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "missing_packages", lambda: ["onnxruntime"])
    found, reasons = measured({"mlp": MLP})
    assert reasons == []
    assert found["mlp"].keys() == {"program_latency_ms", "program_latency_batch64_ms"}


def test_elsewhere_than_the_other_latencies_nothing_is_measured() -> None:
    found, reasons = measured({"mlp": MLP}, place="another processor, 1 thread")
    assert found == {}
    assert reasons == ["this worker is not the place of the other latencies, another processor, 1 thread"]


def test_a_network_that_cannot_be_exported_has_a_reason_and_the_others_their_latency(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "branching_nets.py").write_text(
        "from torch import nn\n\nclass Branching(nn.Module):\n"
        "    def __init__(self, num_classes):\n        super().__init__()\n        self.last = nn.Linear(64, num_classes)\n\n"
        "    def forward(self, images):\n        if images.sum() > 0:\n            images = -images\n"
        "        return self.last(images.flatten(1))\n\n"
        "def branching(num_classes, input_shape):\n    return Branching(num_classes)\n"
    )
    monkeypatch.syspath_prepend(folder)
    found, (reason,) = measured({"no": StudentChoice(name="no", model="branching_nets:branching"), "mlp": MLP})
    assert found["no"] == {}
    assert "torch.export cannot trace Branching" in reason
    assert found["mlp"].keys() == set(EXPORTED_LATENCIES)


def test_no_network_is_begun_after_the_time_is_over() -> None:
    assert measured({"mlp": MLP}, total_s=-1.0) == ({}, [])
