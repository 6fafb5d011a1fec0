"""What the student costs where it runs, from the medians over its seeds."""

from collections.abc import Callable
from typing import Any

from stillhouse.report.configurations import Configuration
from stillhouse.report.deployed_cost import deployed
from stillhouse.report.report_data import ReportData
from stillhouse.spec.records import SweepFacts, TrialRecord

MEMORY = {"peak_memory_bytes": 96_000.0, "peak_memory_batch64_bytes": 2_500_000.0, "images_per_second": 12_800.0}
FORMS = {
    "latency_ms": 0.5,
    "latency_batch64_ms": 5.0,
    "program_latency_ms": 0.4,
    "program_latency_batch64_ms": 4.5,
    "onnx_latency_ms": 0.125,
    "onnx_latency_batch64_ms": 2.25,
}


def best_of(record: Callable[..., TrialRecord], metrics: dict[str, Any]) -> Configuration:
    plain = record("soft_targets")
    facts = SweepFacts(name="s", spec={}, dataset={"name": "d"}, baseline="control", planned=1)
    found = ReportData.of(facts, [plain.model_copy(update={"metrics": plain.metrics | metrics})])
    return found.tradeoff.winners[0]


def test_each_form_has_its_latency_beside_that_of_pytorch(record: Callable[..., TrialRecord]) -> None:
    shown = deployed(best_of(record, MEMORY | FORMS), "a processor, 1 thread")
    assert shown is not None
    assert shown["rows"] == [
        ("PyTorch", "0.5 ms", "5 ms"),
        ("Exported program", "0.4 ms", "4.5 ms"),
        ("ONNX (onnxruntime, CPU)", "0.125 ms", "2.25 ms"),
    ]
    assert shown["facts"] == [
        ("Memory at 1 image", "96 kB"),
        ("Memory at 64 images", "2.5 MB"),
        ("Throughput", "12.8k images per second in batches of 64"),
    ]
    assert shown["words"] == "Median times on a processor, 1 thread."


def test_forms_that_were_not_measured_are_left_out(record: Callable[..., TrialRecord]) -> None:
    shown = deployed(best_of(record, MEMORY), "")
    assert shown is not None
    assert [label for label, _, _ in shown["rows"]] == ["PyTorch"]
    assert shown["words"] == "Median times."


def test_sweeps_of_the_first_release_have_no_such_card(record: Callable[..., TrialRecord]) -> None:
    assert deployed(best_of(record, {}), "") is None
