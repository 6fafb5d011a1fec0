"""Ray, as a sweep uses it: a cluster found or started, the data put there once, teachers before trials, trials by Tune."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "auto")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import Resources, SearchSpec, SweepSpec, TrialResources
from stillhouse.sweep.latency import measure_models
from stillhouse.sweep.ledger import Ledger
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.runner import TrialEnvironment, now
from stillhouse.sweep.schedulers import BracketedAsha, key_of, size_bracket
from stillhouse.sweep.trainable import TRIAL_KEY, DistillTrial
from stillhouse.teachers.actor import start_actor
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.workers import driver_import_paths, environment_of_workers

_RESTARTS_OF_A_TRIAL = 3
_RESTARTS_OF_A_TEACHER = 3
_STATUS_INTERVAL_S = 0.5
_MAX_CONCURRENT_REMOTE = 256


class Teacher:
    """A running teacher actor and what it told of itself."""

    def __init__(self, definition: TeacherDefinition, actor: str, handle: Any, facts: dict[str, Any]) -> None:
        self.definition = definition
        self.actor = actor
        self.handle = handle
        self.facts = facts


class Cluster:
    """A connection to Ray for the life of one sweep.

    Args:
        address: of a running cluster; None starts one on this machine, unless this process is connected already.

    Raises:
        InfrastructureError: the address does not answer, or no node can hold a trial.
    """

    def __init__(self, spec: SweepSpec, *, address: str | None, progress: Progress) -> None:
        self._spec = spec
        self._progress = progress
        self._ours = not ray.is_initialized()
        # `ray job submit` tells its entry point the cluster by this variable.
        address = address or os.environ.get("RAY_ADDRESS")
        self._local = address is None
        if self._ours:
            _connect(address)
        self.import_paths = tuple(driver_import_paths()) if self._local else ()
        self.threads = max(1, int(spec.trial_resources.cpu))
        self._data_reference: Any = None
        self._handles: list[Any] = []
        self._check_placement()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._handles.clear()
        self._data_reference = None
        if self._ours:
            ray.shutdown()

    def share(self, data: ImageData) -> None:
        """Puts the data set into the object store: one copy per node, read in place by every process."""
        self._data_reference = ray.put(data.to_arrays())

    def start_teachers(
        self, definitions: Sequence[TeacherDefinition], data: ImageData, views: Views, *, home: Path
    ) -> list[Teacher]:
        """Starts all teachers, and waits until each is loaded or trained.

        Raises:
            UsageError: weights that can not be read or do not fit.
            InfrastructureError: a teacher's actor can not be placed, or keeps dying.
        """
        started = []
        for definition in definitions:
            resources = self._spec.teachers[definition.name].resources
            started.append(
                start_actor(
                    definition,
                    data,
                    self._data_reference,
                    views,
                    home=home,
                    dtype=self._spec.knowledge.dtype,
                    cpus=resources.cpu,
                    gpus=resources.gpu,
                    import_paths=list(self.import_paths),
                    method_folders=list(self._spec.method_paths),
                )
            )
        self._handles += [handle for _, handle in started]
        return [
            Teacher(definition, name, handle, self._prepare(definition.name, handle))
            for definition, (name, handle) in zip(definitions, started, strict=True)
        ]

    def measure_latency(
        self, models: Mapping[str, tuple[str, Mapping[str, Any]]], data: ImageData
    ) -> dict[str, dict[str, float]]:
        """Latency metrics of each (model, options), by the given names, on one quiet worker with a trial's resources."""
        resources = self._spec.trial_resources
        task = ray.remote(measure_models).options(num_cpus=resources.cpu, num_gpus=resources.gpu)
        answer: dict[str, dict[str, float]] = ray.get(
            task.remote(dict(models), data.num_classes, data.input_shape, self.threads, list(self.import_paths))
        )
        return answer

    def run(
        self,
        trials: Sequence[Trial],
        environment: TrialEnvironment,
        *,
        parameters: Mapping[str, int],
        history: Iterable[TrialRecord],
        on_record: Callable[[TrialRecord], None],
    ) -> list[str]:
        """Runs the trials with Tune; every one that ends has its record in the ledger.

        Args:
            parameters: of each trial's student, by trial key, for the size brackets.
            on_record: called with each new record, in the driver; must not block.

        Returns:
            reasons of trials that have no record because the infrastructure failed them.
        """
        folder = Path(environment.folder)
        ledger = Ledger(folder / "ledger")
        watch = TrialWatch(trials, parameters, ledger, self._progress, on_record)
        resources = {"CPU": self._spec.trial_resources.cpu, "GPU": self._spec.trial_resources.gpu}
        trainable = tune.with_resources(
            tune.with_parameters(DistillTrial, environment=environment, data=[self._data_reference]),
            tune.PlacementGroupFactory([{name: share for name, share in resources.items() if share}]),
        )
        tuner = tune.Tuner(
            trainable,
            param_space={TRIAL_KEY: tune.grid_search([trial.model_dump_json() for trial in trials])},
            tune_config=tune.TuneConfig(
                scheduler=self._scheduler(self._spec.search, trials, parameters, history),
                max_concurrent_trials=self._concurrent(len(trials)),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=f"run-{time.time_ns()}",
                storage_path=str(folder / "tune"),
                verbose=0,
                callbacks=[watch],
                # Trials keep their own checkpoints, found by their keys in any later run.
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_RESTARTS_OF_A_TRIAL),
            ),
        )
        tuner.fit()
        return [f"{key}: {reason}" for key, reason in watch.lost().items()]

    def _scheduler(
        self, search: SearchSpec, trials: Sequence[Trial], parameters: Mapping[str, int], history: Iterable[TrialRecord]
    ) -> BracketedAsha | None:
        # A confirming trial is there to be measured, not to be stopped.
        if search.scheduler == "none" or any(trial.phase == "confirm" for trial in trials):
            return None
        earlier = list(history)
        brackets = {trial.key: size_bracket(parameters[trial.key]) for trial in trials}
        known = {record.trial.key: size_bracket(record.metrics.get("parameters", 1)) for record in earlier}
        return BracketedAsha(
            brackets=known | brackets,
            max_epochs=search.max_epochs,
            grace_epochs=search.grace_epochs,
            reduction_factor=search.reduction_factor,
            history=earlier,
        )

    def _concurrent(self, trials: int) -> int:
        if self._spec.max_concurrent_trials is not None:
            return self._spec.max_concurrent_trials
        if not self._local:
            # An autoscaler must see the demand.
            return min(max(trials, 1), _MAX_CONCURRENT_REMOTE)
        return max(1, self._room())

    def _room(self) -> int:
        """How many trials fit the cluster as it is now."""
        there = ray.cluster_resources()
        wanted = self._spec.trial_resources
        by_cpu = int(there.get("CPU", 0) // wanted.cpu)
        return min(by_cpu, int(there.get("GPU", 0) / wanted.gpu)) if wanted.gpu else by_cpu

    def _check_placement(self) -> None:
        if not self._local:
            return
        there = ray.cluster_resources()
        claims: list[tuple[str, TrialResources | Resources]] = [("trial_resources", self._spec.trial_resources)]
        claims += [(f"teachers.{name}.resources", teacher.resources) for name, teacher in self._spec.teachers.items()]
        for key, claim in claims:
            for kind, share in (("CPU", claim.cpu), ("GPU", claim.gpu)):
                if share > there.get(kind, 0):
                    raise InfrastructureError(
                        f"{key}.{kind.lower()} must be <= {there.get(kind, 0):g}, which is what the cluster has, got {share:g}"
                    )

    def _prepare(self, name: str, handle: Any) -> dict[str, Any]:
        for attempt in range(_RESTARTS_OF_A_TEACHER + 1):
            waiting = handle.prepare.remote()
            try:
                while not ray.wait([waiting], timeout=_STATUS_INTERVAL_S)[0]:
                    self._progress.teacher(name, ray.get(handle.status.remote()))
                facts: dict[str, Any] = ray.get(waiting)
                self._progress.teacher(name, ray.get(handle.status.remote()))
            except RayActorError as error:
                if attempt == _RESTARTS_OF_A_TEACHER:
                    raise InfrastructureError(
                        f"teacher '{name}' died {attempt + 1} times while it was made ready: {error}"
                    ) from error
                time.sleep(1)
                continue
            if "error" in facts:
                kind = UsageError if facts["exit_code"] == UsageError.exit_code else InfrastructureError
                raise kind(facts["error"])
            return facts
        raise AssertionError("unreachable")


class TrialWatch(tune.Callback):  # type: ignore[misc]  # ray is not typed
    """Follows Tune's events in the driver: shows progress, hands records on, writes the records of stopped trials."""

    def __init__(
        self,
        trials: Sequence[Trial],
        parameters: Mapping[str, int],
        ledger: Ledger,
        progress: Progress,
        on_record: Callable[[TrialRecord], None],
    ) -> None:
        self._trials = {trial.key: trial for trial in trials}
        self._parameters = parameters
        self._ledger = ledger
        self._progress = progress
        self._on_record = on_record
        self._curves: dict[str, dict[int, dict[str, Any]]] = {}
        self._started: dict[str, str] = {}
        self._open = dict.fromkeys(self._trials, "it was never started")

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its callbacks to restore a run, which a sweep never does: it runs what the ledger lacks.
        return tune.Callback, ()

    def lost(self) -> dict[str, str]:
        """Trials without a record, and why."""
        return dict(self._open)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        key = key_of(trial.config[TRIAL_KEY])
        self._started.setdefault(key, now())
        self._open[key] = "it was interrupted"
        self._progress.trial_started(self._trials[key])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        key = result["key"]
        curve = self._curves.setdefault(key, {})
        for entry in [*json.loads(result.get("curve", "[]")), *([json.loads(result["entry"])] if "entry" in result else [])]:
            curve[entry["epoch"]] = entry
        if "epoch" in result:
            self._progress.trial_epoch(key, result["epoch"], result["validation_accuracy"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        key = key_of(trial.config[TRIAL_KEY])
        record = self._ledger.read(key)
        if record is None:
            record = self._stopped(key)
            self._ledger.write(record)
        self._open.pop(key, None)
        self._curves.pop(key, None)
        self._progress.trial_done(record)
        self._on_record(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        key = key_of(trial.config[TRIAL_KEY])
        text = ""
        with suppress(OSError):
            text = Path(trial.error_file).read_text()
        self._open[key] = _last_sentence(text)
        self._progress.note(f"{key} was lost: {self._open[key]}")

    def _stopped(self, key: str) -> TrialRecord:
        curve = [entry for _, entry in sorted(self._curves.get(key, {}).items())]
        metrics = {"parameters": float(self._parameters[key])}
        if curve:
            metrics["validation_accuracy"] = curve[-1]["validation_accuracy"]
            metrics["train_seconds"] = sum(entry["seconds"] for entry in curve)
        return TrialRecord(
            trial=self._trials[key],
            status="stopped",
            reason="behind others of its size",
            epochs_run=len(curve),
            metrics=metrics,
            curve=curve,
            started=self._started.get(key, ""),
            finished=now(),
        )


def asked(handle: Any, method: str, *arguments: Any) -> Any:
    """One call of a teacher's actor from the driver; its loss is an `InfrastructureError`."""
    try:
        return ray.get(getattr(handle, method).remote(*arguments))
    except RayActorError as error:
        raise InfrastructureError(f"the teacher's actor is gone: {error}") from error
    except RayTaskError as error:
        # What a method asks of the teacher is computed there, and a user's reduction can raise anything.
        raise UsageError(f"the teacher can not {method} what the methods ask of it: {_last_sentence(str(error))}") from error


def request_ahead(teacher: Teacher, views: Iterable[int], kinds: Sequence[Knowledge]) -> None:
    """Lets the teacher fill these views while trials run; nothing waits for it."""
    for view in views:
        teacher.handle.request.remote(view, list(kinds), True)


def _connect(address: str | None) -> None:
    options: dict[str, Any] = {
        "include_dashboard": False if address is None else None,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "namespace": "stillhouse",
    }
    if address is None:
        # Without a word Ray joins whatever cluster it finds traces of on this machine, also one that is gone.
        options["address"] = "local"
        options["runtime_env"] = {"env_vars": dict(environment_of_workers())}
    else:
        options |= {"address": address, "runtime_env": _shipped_code()}
        del options["include_dashboard"]
    try:
        ray.init(**options)
    except (ConnectionError, RayError, TimeoutError, RuntimeError, ValueError) as error:
        where = f"the cluster at {address}" if address else "a local Ray cluster"
        raise InfrastructureError(f"can not reach {where}: {str(error).splitlines()[0]}") from error


def _shipped_code() -> dict[str, Any]:
    """The runtime environment that takes a checkout's code to the nodes; an installed package is expected to be there."""
    import stillhouse

    root = Path(stillhouse.__file__).resolve().parents[2]
    variables = dict(environment_of_workers())
    if not (root / "platform" / "stillhouse").is_dir():
        return {"env_vars": variables}
    excludes = [".git", ".venv", "tests", "benchmarks", "docs", ".stillhouse", "**/__pycache__"]
    return {"working_dir": str(root), "excludes": excludes, "env_vars": {**variables, "PYTHONPATH": "platform"}}


def _trial_name(trial: Any) -> str:
    return key_of(trial.config[TRIAL_KEY])


def _last_sentence(error: str) -> str:
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "its worker died"
