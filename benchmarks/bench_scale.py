"""The time and memory of a sweep apart from its training, by the number of its trials.

    python benchmarks/bench_scale.py [--trials 1000 3000 10000] [--tracked 300 1000] [--tune 300 1000] [--json]

Plans sweeps with that many trials, invents a record for every trial, and measures: the plan; handing out all trials; writing
and reading the ledger; a second run that finds nothing missing; the report; all suggestions of an adaptive search by TPE,
and the same again as in a resumed sweep; and MLflow's store in SQLite, next to the least that MLflow itself needs for runs
with the same params and metrics (`track_plain`). Every number of trials runs in its own process, and its peak memory is
printed. `load` is the machine's load average at the end; the JSON line also contains the processor seconds of each stage.
`--tune` also runs trials without training through Tune, one after the other: from a sweep's queue, and as a grid that Tune
receives as a whole. Prints one table and one JSON line.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

METHODS = ("kd", "decoupled", "dist", "logit_standardization")
EPOCHS = 12
STAGES = (
    "plan",
    "first_run",
    "write",
    "read",
    "second_run",
    "report",
    "search",
    "search_again",
    "track",
    "track_again",
    "track_plain",
    "tune_fed",
    "tune_grid",
)


def spec_of(trials: int, algorithm: str = "random") -> dict[str, Any]:
    return {
        "name": f"scale-{trials}",
        "dataset": {"name": "digits"},
        "teachers": {"big": {"model": "lenet"}},
        "students": [
            {"model": "mlp", "hidden": {"choice": [[8], [16], [32], [64]]}},
            {"model": "lenet", "width": {"choice": [0.5, 0.75, 1.0, 1.5]}},
        ],
        "methods": {key: {} for key in METHODS} | {"scratch": {"label_smoothing": {"uniform": [0, 0.2]}}},
        "search": {
            "algorithm": algorithm,
            "trials_per_method": math.ceil(trials / (len(METHODS) + 1)),
            "max_epochs": EPOCHS,
            "confirm_seeds": 3,
        },
    }


def record_of(trial: Any, size: Any) -> Any:
    """A record as a trial of that size would leave it; accuracy follows from the key and the size."""
    from stillhouse.spec.records import TrialRecord

    luck = int(trial.key[:6], 16) / 16**6
    accuracy = 0.9 + 0.01 * math.log10(size.parameters) + 0.02 * luck
    curve = [
        {
            "epoch": epoch,
            "stage": "main",
            "train_loss": 2.0 / epoch,
            "cross_entropy": 1.0 / epoch,
            "kd": 1.0 / epoch,
            "learning_rate": 0.1,
            "validation_accuracy": accuracy * (1 - math.exp(-epoch / 2)),
            "seconds": 1.5,
        }
        for epoch in range(1, EPOCHS + 1)
    ]
    metrics = {
        "parameters": size.parameters,
        "trainable_parameters": size.parameters,
        "size_bytes": size.size_bytes,
        "macs": size.macs,
        "latency_ms": 0.1 + size.macs / 1e7,
        "latency_p95_ms": 0.2 + size.macs / 1e7,
        "latency_batch64_ms": 1.0 + size.macs / 1e6,
        "train_seconds": 1.5 * EPOCHS,
        "validation_accuracy": accuracy,
        "test_accuracy": accuracy - 0.002,
    }
    return TrialRecord(
        trial=trial,
        status="finished",
        epochs_run=EPOCHS,
        metrics={name: float(value) for name, value in metrics.items()},
        curve=curve,
        teaching={"way": "cached", "samples_gathered": 17_000, "bytes_gathered": 680_000, "wait_seconds": 0.2},
        weights=f"students/{trial.key}.safetensors",
        weights_hash=trial.key * 2,
        started="2026-01-05T10:00:00+00:00",
        finished="2026-01-05T10:00:20+00:00",
    )


def measure(trials: int, track: bool) -> dict[str, Any]:
    """Seconds by stage for one number of trials, and the largest memory of this process in MB."""
    from stillhouse.data.datasets import load_dataset
    from stillhouse.report import write_report
    from stillhouse.spec.load import spec_to_dict, validate
    from stillhouse.spec.records import SweepFacts
    from stillhouse.spec.schema import SearchBudget
    from stillhouse.sweep.home.ledger import Ledger
    from stillhouse.sweep.planning.plan import make_plan
    from stillhouse.sweep.search.budget import BudgetTracker
    from stillhouse.sweep.search.trial_queue import ListQueue, start_queue
    from stillhouse.tracking import Tracker

    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started, used = time.perf_counter(), time.process_time()
        yield
        seconds[stage] = round(time.perf_counter() - started, 3)
        seconds[f"{stage}_cpu"] = round(time.process_time() - used, 3)

    data = load_dataset("digits")
    # Imports and objects that are built once are not part of the slope.
    make_plan(validate(spec_of(10)), data)
    with timed("plan"):
        plan = make_plan(validate(spec_of(trials)), data)
    records = {trial.key: record_of(trial, plan.size_of(trial)) for trial in plan.trials}
    endless = BudgetTracker(SearchBudget())
    with timed("first_run"):
        assert len(start_queue(plan.queue({}, BudgetTracker(SearchBudget())))) == len(plan.trials)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger")
        with timed("write"):
            for record in records.values():
                ledger.write(record)
        with timed("read"):
            found, damaged = ledger.read_all()
        assert len(found) == len(records)
        assert not damaged
        with timed("second_run"):
            queue = plan.queue(found, endless)
            assert not start_queue(queue)
            confirmed = ListQueue(plan.trials_to_confirm(found.values(), queue.known.values()), found, endless)
            winners = start_queue(confirmed)
        everything = [*found.values(), *(record_of(trial, plan.size_of(trial)) for trial in winners)]
        facts = SweepFacts(
            name=plan.spec.name,
            spec=spec_to_dict(plan.spec),
            dataset={"name": "digits", "num_classes": 10, "train_samples": 1400, "fingerprint": "0"},
            baseline="scratch",
            planned=len(plan.trials),
            objectives=plan.spec.objectives,
        )
        with timed("report"):
            files = write_report(facts, everything, Path(folder) / "report", [], {})
        page_bytes = Path(files.page).stat().st_size
        with timed("search"):
            adaptive, chosen = search(trials, data)
        with timed("search_again"):
            assert not start_queue(adaptive.queue(chosen, endless))
        if track:
            # The second time everything is in the store, as when a sweep is resumed.
            for stage in ("track", "track_again"):
                tracker = Tracker(None, home=Path(folder), experiment="scale")
                tracker.start_sweep(facts)
                with timed(stage):
                    for record in found.values():
                        tracker.log_trial(record)
                    tracker.drain(3600)
                tracker.close()
            with timed("track_plain"):
                track_plainly(f"sqlite:///{folder}/mlflow.db", found.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "trials": len(plan.trials),
        **seconds,
        "page_MB": round(page_bytes / 1e6, 2),
        "peak_MB": round(peak),
        "load": round(os.getloadavg()[0], 1),
    }


def track_plainly(uri: str, records: Iterable[Any]) -> None:
    """Writes a run for each record with three calls of MLflow."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    from stillhouse.tracking.entries import trial_entry

    client = MlflowClient(uri)
    experiment = client.create_experiment("plain")
    for record in records:
        entry = trial_entry(record, sweep="plain")
        run = client.create_run(experiment, tags=entry.tags, run_name=entry.name)
        metrics = [Metric(point.name, point.value, entry.finished_ms, point.step) for point in entry.points]
        client.log_batch(run.info.run_id, metrics=metrics, params=[Param(*pair) for pair in entry.params.items()])
        client.set_terminated(run.info.run_id)


def search(trials: int, data: Any) -> tuple[Any, dict[str, Any]]:
    """A plan of an adaptive search of that many trials, and its records, from its first question to its last."""
    from stillhouse.spec.load import validate
    from stillhouse.spec.schema import SearchBudget
    from stillhouse.sweep.planning.plan import make_plan
    from stillhouse.sweep.search.budget import BudgetTracker

    plan = make_plan(validate(spec_of(trials, "tpe")), data)
    queue = plan.queue({}, BudgetTracker(SearchBudget()))
    records = {}
    while (trial := queue.next()) is not None or not queue.finished:
        if trial is not None:
            records[trial.key] = record_of(trial, plan.size_of(trial))
            queue.add(records[trial.key])
    return plan, records


def run_through_tune(trials: int, fed: bool) -> float:
    """Seconds that Tune takes for trials without training, without the start of the cluster."""
    import ray
    from ray import tune

    from stillhouse.spec.records import StudentChoice, Trial
    from stillhouse.spec.schema import SearchBudget
    from stillhouse.sweep.execution.early_stopping import FifoScheduler
    from stillhouse.sweep.execution.trainable import TRIAL_CONFIG
    from stillhouse.sweep.execution.tune_searcher import QueueSearcher
    from stillhouse.sweep.search.budget import BudgetTracker
    from stillhouse.sweep.search.trial_queue import ListQueue

    class NoWork(tune.Trainable):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            return {"done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    if fed:
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1e9"
    student = StudentChoice(name="mlp", model="mlp", options={"hidden": [16]})
    listed = [Trial(key=f"{number:016x}", student=student, method="scratch", epochs=1) for number in range(trials)]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local")
    config: dict[str, Any] = {"reuse_actors": True, "max_concurrent_trials": 2}
    space: dict[str, Any] = {}
    if fed:
        config |= {
            "search_alg": QueueSearcher(ListQueue(listed, {}, BudgetTracker(SearchBudget())), lambda trial: None),
            "num_samples": trials,
            "scheduler": FifoScheduler(),
        }
    else:
        space = {TRIAL_CONFIG: tune.grid_search([trial.model_dump_json() for trial in listed])}
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            NoWork,
            param_space=space,
            tune_config=tune.TuneConfig(**config),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        started = time.perf_counter()
        results = tuner.fit()
        took = time.perf_counter() - started
    assert len(results) == trials
    assert not results.num_errors
    ray.shutdown()
    return took


def in_a_process(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, encoding="utf-8")
    return json.loads(done.stdout.splitlines()[-1])


def show(rows: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    columns = ["trials", *(stage for stage in STAGES if any(stage in row for row in rows)), "page_MB", "peak_MB", "load"]
    say("  ".join(f"{column:>10}" for column in columns))
    for row in rows:
        say("  ".join(f"{row.get(column, ''):>10}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=[1000, 3000, 10_000])
    parser.add_argument("--tracked", type=int, nargs="*", default=[300, 1000], help="numbers of trials written to MLflow too")
    parser.add_argument("--tune", type=int, nargs="*", default=[], help="numbers of trials without training, run through Tune")
    parser.add_argument("--one", choices=["measure", "track", "fed", "grid"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (trials,) = options.trials
        if options.one in ("measure", "track"):
            print(json.dumps(measure(trials, options.one == "track")))
        else:
            print(json.dumps(round(run_through_tune(trials, options.one == "fed"), 2)))
        return
    rows = [
        in_a_process("--one", "track" if trials in options.tracked else "measure", "--trials", str(trials))
        for trials in sorted({*options.trials, *options.tracked})
    ]
    for trials in options.tune:
        took = {f"tune_{way}": in_a_process("--one", way, "--trials", str(trials)) for way in ("fed", "grid")}
        rows.append({"trials": trials, **took})
    show(rows, print)
    print(json.dumps({"benchmark": "scale", "epochs": EPOCHS, "rows": rows}))


if __name__ == "__main__":
    main()
