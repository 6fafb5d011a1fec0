"""Step 2: methods and operators pass their suites on the device; methods begin as on the CPU and do not make the host wait."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from gpu_steps.parts import counted_syncs
from gpu_steps.plan import Settings, finish
from gpu_steps.replacements import missing_package, replace_missing

_MAX_SYNCS_PER_STEP = 1.0
_UNAVOIDABLE = {"kd_svd": 4.0}
"""By method, further synchronisations in a step: each decomposition of a map reads its error flags (decision 36)."""
_LOSS_TOLERANCE = 0.02
_TINY = ("kd", "attention_transfer")


def conformance(settings: Settings) -> dict[str, Any]:
    """Runs every check of every method; methods in several processes at a time."""
    from stillhouse import compress, methods

    names = settings.size(methods.names(), [name for name in methods.names() if name in _TINY])
    if settings.tiny:
        found = [_check(name, settings) for name in names]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(8, os.cpu_count() or 1), mp_context=context, initializer=_prepare) as pool:
            found = list(pool.map(_check, names, [settings] * len(names)))
    found += [_check_operator(name, settings) for name in settings.size(compress.names(), compress.names()[:1])]
    problems = [problem for each in found for problem in each["problems"]]
    figures = {
        "methods": len(names),
        "operators": len(found) - len(names),
        "checks_passed": sum(each["passed"] for each in found),
        "checks_skipped": sum(each["skipped"] for each in found),
        "syncs_per_step": {each["name"]: each["syncs"] for each in found if each["syncs"]},
        "slowest": max(((each["seconds"], each["name"]) for each in found), default=None),
    }
    return finish(problems, figures)


def _prepare() -> None:
    torch.set_num_threads(1)


def _check(name: str, settings: Settings) -> dict[str, Any]:
    """Runs in a process of its own: the checks of one method, its first loss, and its synchronisations."""
    replaced = replace_missing()
    from stillhouse import methods
    from stillhouse.testing import CHECKS, suiting_trial

    started = time.perf_counter()
    method = methods.find(name).shortened()
    shortest = _epochs(method, settings)
    trial = suiting_trial(method, epochs=shortest, device=settings.device)
    found = _run_checks(name, CHECKS, trial, settings, replaced)
    try:
        _compare_losses(trial, found)
        _count_syncs(trial, settings, found)
    except Exception as error:
        found["problems"].append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
    found["seconds"] = round(time.perf_counter() - started, 1)
    return found


def _check_operator(name: str, settings: Settings) -> dict[str, Any]:
    from stillhouse import compress
    from stillhouse.testing import OPERATOR_CHECKS, OperatorTrial

    started = time.perf_counter()
    trial = OperatorTrial(compress.find(name)(), device=settings.device)
    found = _run_checks(name, OPERATOR_CHECKS, trial, settings, ())
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def _run_checks(name: str, checks: Any, trial: Any, settings: Settings, replaced: Any) -> dict[str, Any]:
    """How many checks passed and were skipped for a missing package, and what is wrong; with tiny sizes the last ones only."""
    found: dict[str, Any] = {"name": name, "passed": 0, "skipped": 0, "problems": [], "syncs": 0.0}
    for check in settings.size(list(checks), list(checks)[-4:]):
        try:
            checks[check](trial)
            found["passed"] += 1
        except Exception as error:
            if missing_package(error, replaced) is not None:
                found["skipped"] += 1
            else:
                found["problems"].append(f"{name}, {check}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
    return found


def _epochs(method: Any, settings: Settings) -> int:
    """The fewest epochs with which the method's stages can be made."""
    from stillhouse.testing import suiting_trial

    for epochs in range(1, 5):
        try:
            suiting_trial(method, epochs=epochs, device=settings.device).trainer()
        except Exception:
            continue
        return epochs
    return 4


def _compare_losses(trial: Any, found: dict[str, Any]) -> None:
    import dataclasses

    on_device = trial.trainer().run_epoch()["train_loss"]
    on_cpu = dataclasses.replace(trial, device="cpu").trainer().run_epoch()["train_loss"]
    if not abs(on_device - on_cpu) <= _LOSS_TOLERANCE * max(abs(on_cpu), 1e-3):
        found["problems"].append(f"{found['name']}: the first epoch's loss is {on_device:.5g}, on the CPU {on_cpu:.5g}")


def _count_syncs(trial: Any, settings: Settings, found: dict[str, Any]) -> None:
    """Counts in an epoch whose shapes and kernels were used before."""
    trainer = trial.trainer()
    if trainer.epochs > 1:
        trainer.run_epoch()
    train = trainer._train_epoch
    counts: list[int] = []

    def counted(*arguments: Any) -> Any:
        nonlocal counts
        with counted_syncs(settings) as counts:
            return (yield from train(*arguments))

    trainer._train_epoch = counted
    trainer.run_epoch()
    # The end of an epoch reads the means of the loss terms, once for each term.
    found["syncs"] = counts[0] / trainer.split.batches_per_epoch
    if found["syncs"] > _MAX_SYNCS_PER_STEP + _UNAVOIDABLE.get(found["name"], 0.0):
        found["problems"].append(f"{found['name']}: the host waits for the GPU {found['syncs']:.1f} times per step")
