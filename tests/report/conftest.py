"""Made-up sweeps that look like real ones: accuracy grows with log size, methods add a little, seeds scatter."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stillhouse.spec.records import StudentChoice, SweepFacts, TeacherFacts, Trial, TrialRecord

BASELINE = "control"
METHODS: dict[str, tuple[float, dict[str, tuple[float, float]]]] = {
    BASELINE: (0.0, {}),
    "soft_targets": (0.012, {"temperature": (1.0, 10.0), "soft_weight": (0.1, 1.0)}),
    "hints": (0.008, {"hint_weight": (1.0, 1000.0)}),
    "attention_maps": (0.009, {"map_weight": (10.0, 10000.0)}),
    "noisy_targets": (0.006, {"sigma": (0.1, 1.5), "temperature": (1.0, 10.0)}),
    "peers": (0.007, {"peer_weight": (0.1, 2.0)}),
    "generations": (0.010, {"soft_weight": (0.1, 1.0)}),
}
STUDENTS: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "mlp": ("mlp", {"width": 1.0}, 26_122, 0.861),
    "lenet": ("lenet", {}, 61_706, 0.893),
    "resnet8-quarter": ("resnet8", {"width": 0.25}, 5_402, 0.868),
    "resnet8-half": ("resnet8", {"width": 0.5}, 20_138, 0.899),
    "resnet8": ("resnet8", {"width": 1.0}, 78_042, 0.921),
}


def make_record(
    method: str = "soft_targets",
    student: str = "lenet",
    *,
    test: float | None = 0.9,
    validation: float | None = None,
    seed: int = 0,
    phase: str = "search",
    status: str = "finished",
    hyperparameters: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    parameters: int = 61_706,
    key: str | None = None,
    teacher: str | None = "large",
    **fields: Any,
) -> TrialRecord:
    """One record with as much of a result as the test needs."""
    metrics = {
        "parameters": float(parameters),
        "size_bytes": 4.0 * parameters + 2_000,
        "macs": 6.0 * parameters,
        "latency_ms": 0.1 + parameters / 1e6,
        "train_seconds": 10.0,
    }
    if test is not None:
        metrics["test_accuracy"] = test
        metrics["validation_accuracy"] = test if validation is None else validation
    return TrialRecord(
        trial=Trial(
            key=key or f"{method}-{student}-{options}-{hyperparameters}-{seed}-{phase}",
            phase="confirm" if phase == "confirm" else "control" if phase == "control" else "search",
            student=StudentChoice(name=student, model=student, options=options or {}),
            method=method,
            hyperparameters=hyperparameters or {},
            teacher=None if method == BASELINE else teacher,
            seed=seed,
            epochs=10,
        ),
        status="finished" if status == "finished" else "failed" if status == "failed" else "stopped",
        epochs_run=10,
        metrics={**metrics, **fields.pop("metrics", {})},
        **fields,
    )


def make_facts(**changes: Any) -> SweepFacts:
    return SweepFacts(
        **{
            "name": "made-up",
            "spec": {
                "name": "made-up",
                "dataset": {"name": "made_up_images", "validation": 5000},
                "students": list(STUDENTS),
                "methods": dict.fromkeys(METHODS, "defaults"),
                "search": {"algorithm": "random", "trials_per_method": 8, "confirm_seeds": 3},
                "tracking": {"uri": "postgresql://writer:hunter2@tracking.example/mlflow"},
            },
            "dataset": {"name": "made_up_images", "train_samples": 55_000, "num_classes": 10, "fingerprint": "5f0c"},
            "baseline": BASELINE,
            "planned": 224,
            "teachers": [
                TeacherFacts(
                    name="large",
                    model="resnet56",
                    key="9ab1" * 8,
                    parameters=855_770,
                    size_bytes=3_468_000,
                    macs=126_000_000,
                    latency_ms=9.1,
                    validation_accuracy=0.946,
                    test_accuracy=0.941,
                    reason="a sealed view is 60 times cheaper than the teacher's forward pass",
                    samples_forwarded=440_000,
                    samples_reused=9_000_000,
                    bytes_written=17_600_000,
                    fill_seconds=610.0,
                    seconds_per_sample=0.00138,
                    train_seconds=1_900.0,
                    trained_now=True,
                )
            ],
            "objectives": {"validation_accuracy": "max", "parameters": "min"},
            "notes": ["hints with mlp: skipped, the student has no feature map to compare"],
            "environment": {"stillhouse": "0.1.0", "commit": "0123abc", "python": "3.11.2", "hardware": {"cpu": "2 cores"}},
            "tracking": {"uri": "sqlite:///runs.db", "experiment": "made-up", "run_id": "f00d"},
            "command": "stillhouse sweep made_up.yaml",
            "started": "2026-01-05T10:00:00+00:00",
            "seconds": 5_400.0,
            **changes,
        }
    )


def make_sweep(trials_per_pair: int = 4, confirm_seeds: int = 3, seed: int = 7, epochs: int = 12) -> list[TrialRecord]:
    """A whole sweep: `trials_per_pair` searched trials of every method and student, then the winners on fresh seeds."""
    random = np.random.default_rng(seed)
    records: list[TrialRecord] = []
    for student in STUDENTS:
        luck = {number: random.normal(0, 0.002) for number in range(confirm_seeds + 1)}
        for method, (_, priors) in METHODS.items():
            if method == "hints" and student == "mlp":
                continue
            pair = [
                _one(random, method, student, _draw(random, priors), 0, "search", luck[0], epochs)
                for _ in range(trials_per_pair if priors else 1)
            ]
            records += pair
            done = [record for record in pair if record.status == "finished"]
            if done:
                best = max(done, key=lambda record: record.metrics["validation_accuracy"])
                records += [
                    _one(random, method, student, best.trial.hyperparameters, number, "confirm", luck[number], epochs)
                    for number in range(1, confirm_seeds + 1)
                ]
    return records


def _draw(random: np.random.Generator, priors: dict[str, tuple[float, float]]) -> dict[str, Any]:
    return {
        name: float(low * (high / low) ** random.random()) if high / low > 50 else float(low + (high - low) * random.random())
        for name, (low, high) in priors.items()
    }


def _one(
    random: np.random.Generator,
    method: str,
    student: str,
    hyperparameters: dict[str, Any],
    seed: int,
    phase: str,
    luck: float,
    epochs: int,
) -> TrialRecord:
    model, options, parameters, base = STUDENTS[student]
    gain, priors = METHODS[method]
    shape = sum(
        (math.log(hyperparameters[name] / low) / math.log(high / low) - 0.55) ** 2 for name, (low, high) in priors.items()
    )
    accuracy = base + gain - 0.02 * shape + luck + random.normal(0, 0.0015)
    fate = random.random() if phase == "search" and priors else 1.0
    status, run = ("failed", 3) if fate < 0.03 else ("stopped", 4) if fate < 0.2 else ("finished", epochs)
    curve = [
        {
            "epoch": epoch,
            "stage": "main",
            "train_loss": 2.0 * math.exp(-epoch / 5) + 0.3,
            "validation_accuracy": (accuracy + 0.003) * (1 - math.exp(-(epoch + 0.5) / (epochs / 5))) + random.normal(0, 0.002),
            "learning_rate": 0.05,
            "seconds": 2.0,
        }
        for epoch in range(1, run + 1)
    ]
    sizes: dict[str, Any] = {
        "parameters": parameters,
        "trainable_parameters": parameters,
        "size_bytes": 4 * parameters + 3_000,
        "macs": parameters * (14 if model == "resnet8" else 1.2),
        "latency_ms": 0.15 + parameters / 2e5 + random.normal(0, 0.004),
        "latency_p95_ms": 0.3 + parameters / 2e5,
        "latency_batch64_ms": 1.1 + parameters / 1e4,
        "train_seconds": 2.0 * run,
    }
    results: dict[str, Any] = {} if status == "failed" else {"validation_accuracy": curve[-1]["validation_accuracy"]}
    if status == "finished":
        results["test_accuracy"] = accuracy
    uses = 0 if method == BASELINE else 55_000 * run
    return TrialRecord(
        trial=Trial(
            key=f"{random.integers(16**12):012x}",
            phase="confirm" if phase == "confirm" else "search",
            student=StudentChoice(name=student, model=model, options=options),
            method=method,
            hyperparameters=hyperparameters,
            teacher=None if method == BASELINE else "large",
            seed=seed,
            epochs=epochs,
        ),
        status="failed" if status == "failed" else "stopped" if status == "stopped" else "finished",
        reason={"failed": "loss is NaN at epoch 3 of stage main", "stopped": "asha: below the median at epoch 4"}.get(status),
        epochs_run=run,
        metrics={**{name: float(value) for name, value in sizes.items()}, **results},
        curve=curve,
        teaching={"way": "cached", "samples_gathered": uses, "bytes_gathered": 40 * uses, "wait_seconds": 0.2} if uses else {},
        started="2026-01-05T10:00:00+00:00",
        finished="2026-01-05T10:00:30+00:00",
    )


@pytest.fixture(scope="session")
def record() -> Callable[..., TrialRecord]:
    return make_record


@pytest.fixture(scope="session")
def facts() -> Callable[..., SweepFacts]:
    return make_facts


@pytest.fixture(scope="session")
def sweep() -> Callable[..., list[TrialRecord]]:
    return make_sweep
