"""Columns of the trade-off table: what is measured of winners when all trials have ended. Other trials have no value."""

from collections.abc import Iterator, Sequence

from stillhouse.report.columns import Column
from stillhouse.spec.late_metrics import EXPORTED_LATENCIES, ROBUSTNESS_PREFIX, is_late
from stillhouse.spec.records import SweepFacts, TrialRecord

_SPELLED = {"jpeg": "JPEG"}
_FORMS = {"program": "the torch.export program", "onnx": "the ONNX file, run by onnxruntime on the CPU"}


def late_columns(facts: SweepFacts, records: Sequence[TrialRecord]) -> Iterator[tuple[Column, list[float | None]]]:
    """The latencies of exported forms, and the metric on degraded images where any record has it."""
    for name in EXPORTED_LATENCIES:
        samples = "64 samples" if name.endswith("_batch64_ms") else "one sample"
        form = _FORMS[name.partition("_")[0]]
        yield (
            Column(name, "float64", "ms", f"median time of {samples} in {form}; only of winners"),
            [record.metrics.get(name) for record in records],
        )
    kind = "fraction" if facts.metric.percent else ""
    for name in robustness_names(records):
        words = f"test {facts.metric.label} on images with the degradation {degradation_of(name)}; only of winners"
        yield Column(name, "float64", kind, words), [record.metrics.get(name) for record in records]


def robustness_names(records: Sequence[TrialRecord]) -> list[str]:
    """The metrics on degraded images that any record has."""
    names = {name: None for record in records for name in record.metrics if is_late(name)}
    return [name for name in names if name.startswith(ROBUSTNESS_PREFIX)]


def degradation_of(name: str) -> str:
    """The degradation of such a metric, for readers: `noise`, `JPEG`."""
    plain = name.removeprefix(ROBUSTNESS_PREFIX)
    return _SPELLED.get(plain, plain)
