"""Latency of what `export` writes of a network, measured where the latency of the network itself was."""

import time
from collections.abc import Mapping

from torch import Tensor, nn

from stillhouse.compress.students import finalised_student
from stillhouse.home_access.ray_process import own_device
from stillhouse.models.exported_form import exported_form
from stillhouse.models.layers import Shape
from stillhouse.models.size import measure_latency
from stillhouse.provenance import place_of
from stillhouse.spec.late_metrics import ONNX_LATENCY, ONNX_LATENCY_64, PROGRAM_LATENCY, PROGRAM_LATENCY_64
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.execution.trial_records import failure_reason
from stillhouse.temporary_folders import temporary_folder
from stillhouse.user_code import user_code
from stillhouse.workers import prepare_worker

_BUDGET_S = 0.3


def measure_exported(
    models: Mapping[str, StudentChoice],
    num_classes: int,
    input_shape: Shape,
    threads: int,
    import_paths: list[str],
    *,
    place: str,
    total_s: float,
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Latencies of the exported forms of each network, by name, in milliseconds, on the device of this worker.

    Args:
        models: the most important one first.
        place: where the networks themselves were measured, as `place_of`; elsewhere nothing is measured.
        total_s: no network is begun later than that.

    Returns:
        the latencies by `EXPORTED_LATENCIES`, less or none for a network that cannot be exported; and the reasons, one each.
    """
    prepare_worker(import_paths, threads)
    device = own_device()
    if place_of(device, threads) != place:
        return {}, [f"this worker is not the place of the other latencies, {place}"]
    found: dict[str, dict[str, float]] = {}
    reasons: list[str] = []
    end = time.monotonic() + total_s
    for name, network in models.items():
        if time.monotonic() > end:
            break
        found[name] = {}
        try:
            with user_code():
                built = exported_form(finalised_student(network, num_classes, input_shape))
                found[name] |= _of_program(built, input_shape, device)
                found[name] |= _of_onnx(built, input_shape)
        except Exception as error:  # a user's model can raise anything, and not every network can be exported
            reasons.append(failure_reason(error))
    return found, reasons


def _of_program(network: nn.Module, input_shape: Shape, device: str) -> dict[str, float]:
    """Of the `torch.export` program, by its metric's name."""
    from stillhouse.export import program  # only where it is needed: the driver's start need not wait for this import
    from stillhouse.export.agreement import Answering

    traced = program.make_program(network.to(device), input_shape)
    module = traced.module()

    def answer(images: Tensor) -> Tensor:
        outputs: Tensor = module(images)
        return outputs

    measured = measure_latency(Answering(answer, network), input_shape, device=device, budget_s=_BUDGET_S)
    return {PROGRAM_LATENCY: measured[1].p50_ms, PROGRAM_LATENCY_64: measured[64].p50_ms}


def _of_onnx(network: nn.Module, input_shape: Shape) -> dict[str, float]:
    """Of the ONNX file, run by onnxruntime on the CPU; {} where the packages of the extra `export` are not installed."""
    from stillhouse.export import onnx, program
    from stillhouse.export.agreement import Answering

    if onnx.missing_packages():
        return {}
    with temporary_folder("latency") as folder:
        path = folder / "student.onnx"
        onnx.save_onnx(program.make_program(network.cpu(), input_shape), path, "output")
        measured = measure_latency(Answering(onnx.load_answer(path), network), input_shape, budget_s=_BUDGET_S)
    return {ONNX_LATENCY: measured[1].p50_ms, ONNX_LATENCY_64: measured[64].p50_ms}
