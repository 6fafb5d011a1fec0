"""What the student chosen costs where it is deployed: latency in each form, images per second, memory."""

from typing import Any

from stillhouse.report import formatting as wording
from stillhouse.report.configurations import Configuration
from stillhouse.spec.late_metrics import ONNX_LATENCY, ONNX_LATENCY_64, PROGRAM_LATENCY, PROGRAM_LATENCY_64

_FORMS = (
    ("PyTorch", "latency_ms", "latency_batch64_ms"),
    ("Exported program", PROGRAM_LATENCY, PROGRAM_LATENCY_64),
    ("ONNX (onnxruntime, CPU)", ONNX_LATENCY, ONNX_LATENCY_64),
    ("int8 (onnxruntime, CPU)", "int8_latency_ms", ""),
)


def deployed(best: Configuration, place: str) -> dict[str, Any] | None:
    """What the template shows; None where neither memory nor an exported form was measured.

    Args:
        place: where latencies were measured, as `provenance.place_of`; empty where that is not recorded.
    """
    forms = [(label, best.median(one), best.median(many)) for label, one, many in _FORMS]
    memory = [(label, best.median(name)) for label, name in _MEMORY]
    if all(value is None for _, value in memory) and all(one is None for _, one, _ in forms[1:]):
        return None
    facts = [(f"Memory at {label}", wording.size(value)) for label, value in memory if value is not None]
    if (rate := best.median("images_per_second")) is not None:
        facts.append(("Throughput", f"{wording.short(rate)} images per second in batches of 64"))
    return {
        "rows": [
            (label, wording.milliseconds(one), wording.milliseconds(many) if many is not None else "")
            for label, one, many in forms
            if one is not None
        ],
        "facts": facts,
        "words": f"Median times on {place}." if place else "Median times.",
        "memory_words": "Memory: weights, inputs and results of operations at their peak, without what a library reserves.",
    }


_MEMORY = (("1 image", "peak_memory_bytes"), ("64 images", "peak_memory_batch64_bytes"))
