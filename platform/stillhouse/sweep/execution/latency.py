"""Latency of every distinct network, measured once on a quiet worker with a trial's share of the machine."""

from collections.abc import Collection, Mapping

from torch import nn

from stillhouse.compress.students import finalised_student
from stillhouse.errors import UsageError
from stillhouse.home_access.ray_process import own_device
from stillhouse.models.size import measure_latency, peak_memory
from stillhouse.provenance import place_of
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.execution.trial_records import failure_reason
from stillhouse.user_code import user_code
from stillhouse.workers import prepare_worker

_BUDGET_S = 1.5
_ALL_S = 60.0
"""About how long all networks may take together, since trials start afterwards: with more networks, each gets fewer passes."""
_MEASUREMENTS = 4
"""Per network: one image and a batch, each once to warm up and once to be timed."""


def measure_models(
    models: Mapping[str, StudentChoice],
    num_classes: int,
    input_shape: tuple[int, ...],
    threads: int,
    import_paths: list[str],
    *,
    known: Collection[str] = (),
    place: str = "",
) -> tuple[dict[str, dict[str, float]], dict[str, str], str]:
    """Latency metrics of each network, by name, in milliseconds, on the device of this worker.

    A model that cannot run has a reason in the second dict instead; each of its trials will fail alone.

    Args:
        known: names of models that were measured at `place`; they are measured again only if this worker is elsewhere.

    Returns:
        the metrics, the reasons, and where they were measured, as `place_of`.
    """
    prepare_worker(import_paths, threads)
    device = own_device()
    here = place_of(device, threads)
    if here == place:
        models = {name: model for name, model in models.items() if name not in known}
    found: dict[str, dict[str, float]] = {}
    reasons: dict[str, str] = {}
    budget_s = min(_BUDGET_S, _ALL_S / (_MEASUREMENTS * max(1, len(models))))
    for name, network in models.items():
        try:
            with user_code():
                found[name] = latency_metrics(network, num_classes, input_shape, device, budget_s)
        except Exception as error:  # a user's model can raise anything, and a large one may not fit a share of a GPU
            reasons[name] = failure_reason(error)
    return found, reasons, here


def latency_metrics(
    network: StudentChoice, num_classes: int, input_shape: tuple[int, ...], device: str, budget_s: float
) -> dict[str, float]:
    """p50 and p95 of one image, p50 of a batch of 64, in milliseconds; its images per second; memory at both sizes in bytes.

    A network with operators that has an int8 form has `int8_latency_ms` too: p50 of one image on the CPU, by onnxruntime. It is
    absent where the packages of the extra `export` are not installed.

    Args:
        budget_s: as `measure_latency` takes it.
    """
    built = finalised_student(network, num_classes, input_shape).to(device)
    measured = measure_latency(built, input_shape, device=device, budget_s=budget_s)
    return {
        "latency_ms": measured[1].p50_ms,
        "latency_p95_ms": measured[1].p95_ms,
        "latency_batch64_ms": measured[64].p50_ms,
        "images_per_second": 64_000 / measured[64].p50_ms,
        "peak_memory_bytes": float(peak_memory(built, input_shape)),
        "peak_memory_batch64_bytes": float(peak_memory(built, input_shape, 64)),
        **(_int8_latency(built, input_shape) if network.compress else {}),
    }


def _int8_latency(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, float]:
    """By the name of the metric; {} for a network without an int8 form."""
    from stillhouse.export import int8  # only where it is needed: it is of an extra

    network = network.cpu().eval()
    if not int8.computes_in_int8(network):
        return {}
    try:
        return {"int8_latency_ms": int8.latency_ms(network, input_shape)}
    except UsageError:
        # No packages, or a layer without an integer kernel: the network itself was measured.
        return {}
