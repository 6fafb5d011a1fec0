"""The Trainable of Ray Tune that runs trials; its process is reused for the next trial."""

import json
from collections.abc import Generator
from functools import partial
from typing import Any

import ray
from ray import tune

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.device import check_device, free_memory, keep_what_is_loaded
from stillhouse.distill.interleaver import run_out
from stillhouse.errors import InfrastructureError, as_disk_full, is_disk_full
from stillhouse.home_access.ray_process import own_device
from stillhouse.spec.records import Trial
from stillhouse.sweep.execution.multi_worker import WorkerGroup
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_records import existing_record, failed_record, failure_reason
from stillhouse.sweep.execution.trial_runner import TrialRunner
from stillhouse.user_code import user_code
from stillhouse.workers import prepare_worker

TRIAL_CONFIG = "trial"
DISK_FULL = "no room"


class TrialSession:
    """Trials one after the other, an epoch per step.

    Failures of a trial become records; only failures of the infrastructure reach Tune.

    A full disk is no trial's fault and no other attempt mends it: it is reported as `DISK_FULL`, and the driver ends the sweep.

    `data` holds the reference of the data set in the object store, so that a node has one copy.
    Checkpoints are the runner's own, found by the trial's key, so that any later run of the sweep goes on with them.
    """

    _keeps_loaded_code = False

    def setup(self, config: dict[str, Any], environment: TrialEnvironment, data: list[Any]) -> None:
        prepare_worker(environment.import_paths, environment.threads, environment.method_folders, environment.gpu_share)
        self._keeps_loaded_code = True
        self.start(config, environment, ImageData.from_arrays(*ray.get(data[0])), data)

    def start(self, config: dict[str, Any], environment: TrialEnvironment, data: ImageData, shared_data: list[Any]) -> None:
        """Begins the first trial in a prepared process.

        Args:
            data: may be shared with other sessions of the process.
            shared_data: the reference of the same data in the object store, for other workers of the trials.
        """
        self._environment = environment
        self._shared_data = shared_data
        self._data = data
        self._group: WorkerGroup | None = None
        self._runner: TrialRunner | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # An error, since Tune gives up a trial whose process reports that it cannot be reused, and restarts one that fails.
        check_device()
        self._release()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return run_out(self.step_parts())

    def step_parts(self) -> Generator[None, None, dict[str, Any]]:
        """`step` in parts, as `Trainer.epoch_steps`."""
        self._between_epochs = False
        try:
            return (yield from self._step()) if self._disk_full is None else self._report_full_disk(self._disk_full)
        except Exception as error:
            if not is_disk_full(error):
                raise
            return self._report_full_disk(error)

    def _step(self) -> Generator[None, None, dict[str, Any]]:
        if self._runner is None:
            return self._report(None, status=self._done)
        first = not self._reported
        entry = None
        try:
            if not self._runner.finished:
                entry = yield from self._run_epoch(self._runner)
        except InfrastructureError:
            raise
        except Exception as error:  # the trial fails alone, with its reason in the ledger
            if is_disk_full(error):
                raise
            check_device()
            self._runner.fail(failure_reason(error))
            return self._report(None, status="failed")
        # After the last epoch only the disk can fail, which is not the trial's fault.
        if self._runner.finished:
            self._runner.finish()
        status = "finished" if self._runner.finished else "running"
        return self._report(entry, status=status, curve=self._runner.curve if first else None)

    def cleanup(self) -> None:
        # The progress of a trial that is ended from outside is stored, unless it was interrupted within an epoch.
        if self._runner is not None and self._between_epochs:
            self._runner.save()
        self._release()
        self._end_group()

    def _run_epoch(self, runner: TrialRunner) -> Generator[None, None, dict[str, Any]]:
        if self._group is None:
            with user_code():
                return (yield from runner.epoch_steps())
        return self._group.run_on_all("run_epoch", own=runner.run_epoch)

    def _make_runner(self, device: str) -> TrialRunner:
        if self._environment.workers == 1:
            with user_code():
                return TrialRunner(self._trial, self._environment, self._data, device=device)
        if self._group is None or self._group.broken:
            self._end_group()
            self._group = WorkerGroup(self._environment, self._shared_data)
        return self._group.run_on_all(
            "begin",
            self._trial.model_dump_json(),
            own=partial(TrialRunner, self._trial, self._environment, self._data, device=device, workers=self._group.workers),
        )

    def _end_group(self) -> None:
        if self._group is not None:
            self._group.close()
        self._group = None

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial = Trial.model_validate_json(config[TRIAL_CONFIG])
        self._reported = self._between_epochs = False
        self._disk_full: BaseException | None = None
        self._done = "failed"
        device = own_device()
        try:
            if (record := existing_record(self._trial, self._environment)) is not None:
                self._done = record.status
                return
            self._runner = self._make_runner(device)
        except Exception as error:
            if is_disk_full(error):
                self._disk_full = error
                return
            if isinstance(error, InfrastructureError | OSError):
                raise
            check_device()
            failed_record(self._trial, self._environment, error, device=device)

    def _report(
        self, entry: dict[str, Any] | None, *, status: str, curve: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        self._reported = True
        self._between_epochs = status == "running"
        runner = self._runner
        result: dict[str, Any] = {"key": self._trial.key, "status": status, "done": status != "running"}
        if entry is not None and runner is not None:
            column = tasks.of(self._data).metric.column("validation")
            result |= {name: entry[name] for name in ("epoch", column) if name in entry}
            result |= {"comparable": runner.comparable, "entry": json.dumps(entry)}
        if curve is not None:
            result["curve"] = json.dumps(curve)
        return result

    def _report_full_disk(self, error: BaseException) -> dict[str, Any]:
        return {**self._report(None, status=DISK_FULL), "reason": str(as_disk_full(error, self._environment.folder))}

    def _release(self) -> None:
        """Frees the memory of the last trial: the process is reused."""
        self._runner = None
        free_memory()
        if self._keeps_loaded_code:
            keep_what_is_loaded()
            self._keeps_loaded_code = False


class DistillTrial(TrialSession, tune.Trainable):  # type: ignore[misc]  # ray is not typed
    """A session in the process of a Trainable, which Tune starts for each trial that runs at once."""


def key_of(trial_json: str) -> str:
    """The trial's key, read from its JSON without building the object."""
    return str(json.loads(trial_json)["key"])
