"""Numbers of winners that are measured when all trials have ended, and are added to records that exist by then.

They say nothing about a trial that has none. `tracking` adds them to runs that were written before.
"""

PROGRAM_LATENCY, PROGRAM_LATENCY_64 = "program_latency_ms", "program_latency_batch64_ms"
ONNX_LATENCY, ONNX_LATENCY_64 = "onnx_latency_ms", "onnx_latency_batch64_ms"

EXPORTED_LATENCIES = (PROGRAM_LATENCY, PROGRAM_LATENCY_64, ONNX_LATENCY, ONNX_LATENCY_64)
"""Of what `export` writes: the median time of one sample and of 64, in milliseconds."""

ROBUSTNESS_PREFIX = "robustness_"
"""Before the name of a degradation: the task's metric on test images that were degraded."""


def is_late(name: str) -> bool:
    """Whether a metric of a record is one of these numbers."""
    return name in EXPORTED_LATENCIES or name.startswith(ROBUSTNESS_PREFIX)
