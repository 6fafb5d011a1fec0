"""A worker process that runs several trials in turns, with one copy of the data set on its device."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from stillhouse.data.datasets import ImageData, Split
from stillhouse.data.images import images_for
from stillhouse.device import is_lost, memory_limit
from stillhouse.distill.interleaver import Interleaver
from stillhouse.home_access.ray_process import own_device
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG, TrialSession
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.workers import prepare_worker


class PackedWorker:
    """An actor of Ray. Each trial has a session and is called by its key; calls of different trials overlap.

    Ray restarts an actor whose process died. A restarted one runs a single trial at a time, so that the next death is that of
    one trial and not of all. What the dead process ran is in a file beside it.

    Args:
        data: the reference of the data set in the object store.
        name: unique among all workers of all sweeps.
    """

    def __init__(self, environment: TrialEnvironment, data: list[Any], name: str) -> None:
        prepare_worker(environment.import_paths, environment.threads, environment.method_folders, environment.gpu_share)
        device = own_device()
        self._environment = environment
        self._shared_data = data
        self._data = on_device(ImageData.from_arrays(*ray.get(data[0])), device)
        self._note = Path(tempfile.gettempdir()) / f"stillhouse-packed-{name}.json"
        self._suspects: list[str] | None = json.loads(self._note.read_text(encoding="utf-8")) if self._note.exists() else None
        self._sessions: dict[str, TrialSession] = {}
        self._turns = Interleaver(device=device, alone=self._suspects is not None, on_change=self._write_note)

    def suspects(self) -> list[str] | None:
        """The keys of the trials that ran when the worker's process before this one died; None if that is not known."""
        return self._suspects

    def begin(self, key: str, trial_json: str) -> None:
        """Starts a session for the trial. One of an earlier attempt, whose caller died, is dropped."""
        self._wait_for(key, self._begin(key, trial_json))

    def step(self, key: str) -> dict[str, Any]:
        """One epoch of the trial, as `TrialSession.step`."""
        result: dict[str, Any] = self._wait_for(key, self._sessions[key].step_parts())
        return result

    def end(self, key: str) -> None:
        """Stores the trial's progress, if it is between two epochs, and drops its session."""
        self._wait_for(key, self._end(key))

    def close(self) -> None:
        """Ends all sessions, as their trials are to go on in a later run."""
        for key in list(self._sessions):
            self.end(key)
        self._turns.close()
        self._note.unlink(missing_ok=True)

    def _begin(self, key: str, trial_json: str) -> Generator[None, None, None]:
        yield from self._end(key)
        session = TrialSession()
        session.start({TRIAL_CONFIG: trial_json}, self._environment, self._data, self._shared_data)
        self._sessions[key] = session

    def _end(self, key: str) -> Generator[None, None, None]:
        if (session := self._sessions.pop(key, None)) is not None:
            session.cleanup()
            self._turns.forget(key)
        yield from ()

    def _wait_for(self, key: str, job: Generator[None, None, Any]) -> Any:
        try:
            return self._turns.submit(key, job).result()
        except Exception:
            if is_lost():
                # Every trial of this process would fail. Ray starts the actor again.
                os._exit(1)
            raise

    def _write_note(self, keys: Sequence[str]) -> None:
        self._note.write_text(json.dumps(list(keys)), encoding="utf-8")


def on_device(data: ImageData, device: str) -> ImageData:
    """The data set with the images of its training and validation splits on the device, if they are small beside its memory."""
    if memory_limit(device) is None:
        return data
    splits: dict[str, Split] = {}
    for name, split in (("train", data.train), ("validation", data.validation)):
        # Larger splits, and those that find no memory, are left to each trial.
        if isinstance(split.images, Tensor) and isinstance(images := images_for(split.images, device), Tensor):
            splits[name] = dataclasses.replace(split, images=images)
    return dataclasses.replace(data, **splits)  # type: ignore[arg-type]
