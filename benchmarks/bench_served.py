"""Calls of a teacher on generated images: forward pass and vector-Jacobian product, served by the actor against local.

    python benchmarks/bench_served.py [--rows 256] [--rounds 7] [--gpu] [--teacher-gpu 0.5]

One thread each for the caller and for the shared actor. The two variants alternate; the results are medians. `both` is a
forward pass that is then differentiated, as a generator needs; `forward` is one that is not. The bare call is the time that
Ray takes to transfer the same arrays to the actor and back, without any work.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import ray
import torch
from torch import Tensor

from stillhouse.distill.calls import CallableTeacher, InlineTeacher, ServedTeacher
from stillhouse.home_access.ray_process import own_device
from stillhouse.models.registry import build_model
from stillhouse.teachers.call_queue import FairLock
from stillhouse.teachers.model_server import ModelServer
from stillhouse.teachers.served import ActorModel

MODELS = (("lenet", (1, 28, 28), 10), ("resnet14", (3, 32, 32), 100), ("resnet56", (3, 32, 32), 100))


class Server:
    """The actor's serving part with a model of random weights."""

    def __init__(self, model: str, shape: tuple[int, int, int], classes: int, merged_rows: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        network = build_model(model, num_classes=classes, input_shape=shape).to(own_device())
        self._server = ModelServer(network, lock=FairLock(), merged_rows=merged_rows)

    def call(self, *arguments: Any) -> Any:
        return self._server.forward(*arguments)

    def pull_back(self, *arguments: Any) -> Any:
        return self._server.pull_back(*arguments)

    def echo(self, array: Any) -> Any:
        return np.array(array)


class Link:
    """Calls of one actor, without retries."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def call(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._handle, method).remote(*arguments))


def both(teacher: CallableTeacher, pixels: Tensor) -> None:
    (logits,) = teacher(pixels)
    torch.autograd.grad(logits.abs().mean(), pixels)


def forward(teacher: CallableTeacher, pixels: Tensor) -> None:
    with torch.no_grad():
        teacher(pixels)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(
    model: str, shape: tuple[int, int, int], classes: int, *, rows: int, rounds: int, device: str, teacher_gpu: float
) -> dict[str, Any]:
    options = {"num_cpus": 1, "num_gpus": teacher_gpu, "max_concurrency": 8}
    handle = ray.remote(Server).options(**options).remote(model, shape, classes, 0)
    torch.manual_seed(0)
    local = InlineTeacher(build_model(model, num_classes=classes, input_shape=shape).to(device))
    served = ServedTeacher(ActorModel(Link(handle)))  # type: ignore[arg-type]
    pixels = torch.randn(rows, *shape).to(device).requires_grad_()
    array = pixels.detach().cpu().numpy()
    works: dict[str, Callable[[], Any]] = {
        "local_both": lambda: both(local, pixels),
        "served_both": lambda: both(served, pixels),
        "local_forward": lambda: forward(local, pixels),
        "served_forward": lambda: forward(served, pixels),
        "bare_call": lambda: ray.get(handle.echo.remote(array)),
    }
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    ray.kill(handle)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "model": model,
        "rows": rows,
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in medians.items()},
        "ratio_both": round(medians["served_both"] / medians["local_both"], 3),
        "ratio_forward": round(medians["served_forward"] / medians["local_forward"], 3),
        "ratio_both_best": round(min(times["served_both"]) / min(times["local_both"]), 3),
    }


def merging(
    model: str, shape: tuple[int, int, int], classes: int, *, callers: int, rows: int, rounds: int, teacher_gpu: float
) -> dict[str, Any]:
    """Calls of several trials at once, merged and each alone: seconds until all have their answers."""
    array = ray.put(torch.randn(rows, *shape).numpy())
    # Both servers share the GPU.
    options = {"num_cpus": 0, "num_gpus": teacher_gpu / 2, "max_concurrency": callers + 1}
    handles = {limit: ray.remote(Server).options(**options).remote(model, shape, classes, limit) for limit in (0, 1024)}

    def together(limit: int) -> None:
        ray.get([handles[limit].call.remote(f"{number}", array, (), None) for number in range(callers)])

    times: dict[int, list[float]] = {limit: [] for limit in handles}
    for limit in handles:
        together(limit)
    for _ in range(rounds):
        for limit in handles:
            times[limit].append(seconds(lambda limit=limit: together(limit)))  # type: ignore[misc]
    for handle in handles.values():
        ray.kill(handle)
    alone, merged = statistics.median(times[0]), statistics.median(times[1024])
    return {
        "model": model,
        "callers": callers,
        "rows": rows,
        "alone_ms": round(1e3 * alone, 2),
        "merged_ms": round(1e3 * merged, 2),
        "gain": round(alone / merged, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=[name for name, *_ in MODELS])
    parser.add_argument("--gpu", action="store_true", help="the caller and its local teacher compute on the first GPU")
    parser.add_argument("--teacher-gpu", type=float, default=0.0, help="share of one GPU for the shared actor")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, teacher_gpu = "cuda" if arguments.gpu else "cpu", arguments.teacher_gpu
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local")
    chosen = [each for each in MODELS if each[0] in arguments.models]
    sizes: dict[str, Any] = {"rounds": arguments.rounds, "teacher_gpu": teacher_gpu}
    results = [measure(*each, rows=arguments.rows, device=device, **sizes) for each in chosen]
    merged = [merging(*each, callers=8, rows=rows, **sizes) for each in chosen[:2] for rows in (16, 64)]
    ray.shutdown()
    heads = ("model", "local", "served", "ratio", "forward", "served", "ratio", "bare call")
    print("".join(f"{head:>11}" for head in heads), f"  (ms, batches of {arguments.rows})")
    columns = ("local_both_ms", "served_both_ms", "ratio_both", "local_forward_ms", "served_forward_ms", "ratio_forward")
    for each in results:
        print(f"{each['model']:>11}", *(f"{each[column]:10.2f}" for column in (*columns, "bare_call_ms")))
    for each in merged:
        print(
            f"{each['model']:10} {each['callers']} callers of {each['rows']} rows: alone {each['alone_ms']:.1f} ms, "
            f"merged {each['merged_ms']:.1f} ms, gain {each['gain']:.2f}"
        )
    facts = {"benchmark": "served", "threads": 1, "device": device, "teacher_gpu": teacher_gpu}
    print(json.dumps({**facts, "results": results, "merging": merged}))


if __name__ == "__main__":
    main()
