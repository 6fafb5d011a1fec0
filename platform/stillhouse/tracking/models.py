"""Students stored in MLflow with weights, signature and input example, so that a server can run them; the model registry.

A model is stored as a `torch.export` program, never as a pickle of our classes: a server needs torch, but not this package.
"""

import importlib.metadata
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.spec.records import TrialRecord
from stillhouse.temporary_folders import temporary_folder
from stillhouse.tracking.entries import clean_params, clean_tags
from stillhouse.tracking.external import EXTERNAL_TAG, is_external, model_name
from stillhouse.tracking.locations import Location, home_identity, locate
from stillhouse.tracking.store import RejectedError, UnreachableError, attempt, open_client, settings

_REQUIRED = ("mlflow", "torch", "numpy")
_MODEL_TYPE = "student"
_MODEL_ID = "logged_model"
_EXTRA = "extra_files"


@dataclass(frozen=True)
class ModelAlias:
    """A registered model's name and the alias that its version gets."""

    name: str
    alias: str

    @property
    def uri(self) -> str:
        """The address under which MLflow finds the version."""
        return f"models:/{self.name}@{self.alias}"


@dataclass(frozen=True, kw_only=True)
class RegisteredStudent:
    """A version in the registry.

    Attributes:
        uri: `models:/NAME@ALIAS`.
        store: the tracking store, without credentials.
        reused: whether there was a version with these weights already.
    """

    name: str
    alias: str
    version: str
    uri: str
    model_id: str
    run_id: str
    store: str
    reused: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """The network of a finished trial, ready to be stored.

    Attributes:
        model: on the CPU, in evaluation mode.
        example: [B, C, H, W] with B > 1, an input of the student.
        files: stored with the model, by name.
    """

    model: nn.Module
    example: NDArray[np.float32]
    files: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class StoredStudents:
    """How many students were stored now, how many were there already, and why others are missing."""

    stored: int = 0
    skipped: int = 0
    reasons: tuple[str, ...] = ()


def parse_registration(text: str) -> ModelAlias:
    """The parts of `MODEL@ALIAS`, which follow MLflow's rules for both.

    Raises:
        UsageError: one of them does not.
    """
    name, at, alias = text.rpartition("@")
    if not at or not name.strip() or not alias:
        raise UsageError(f"--register must be MODEL@ALIAS, as in digits@pareto, got '{text}'")
    if name != name.strip() or name in (".", "..") or re.search(r"[/:\\\"'@]", name):
        raise UsageError(f"--register: a model's name cannot contain / : \\ @ or quotes, got '{name}'")
    if not re.fullmatch(r"[\w-]{1,255}", alias, re.ASCII) or alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UsageError(
            f"--register: an alias is made of letters, digits, _ and -, and is neither 'latest' nor like 'v1', got '{alias}'"
        )
    return ModelAlias(name, alias)


def store_students(
    uri: str | None,
    *,
    home: Path,
    experiment: str,
    sweep: str,
    records: Iterable[TrialRecord],
    load: Callable[[TrialRecord], TrainedStudent],
) -> StoredStudents:
    """Logs students with their trials' runs; a student whose weights are there already is not loaded.

    The first request that the store does not answer ends it; the next call writes the missing students.

    Args:
        uri: the value of `tracking.uri`; None is the embedded store under `home`.
        records: finished trials that have a run in the store.
        load: returns the network of a trial; a trial for which it raises is left out, with the error as the reason.
    """
    location = locate(uri, home)
    stored = skipped = 0
    reasons = []
    with settings():
        try:
            open_client(location)
            registry = _Registry(location)
            for record in records:
                try:
                    if registry.store(experiment, sweep, record, load):
                        stored += 1
                    else:
                        skipped += 1
                except RejectedError as error:
                    reasons.append(f"student {record.trial.key}: {error}")
        except (UnreachableError, RejectedError) as error:
            reasons.append(str(error))
    return StoredStudents(stored=stored, skipped=skipped, reasons=tuple(reasons))


def register_student(
    wanted: ModelAlias,
    uri: str | None,
    *,
    home: Path,
    experiment: str,
    sweep: str,
    record: TrialRecord,
    student: TrainedStudent,
) -> RegisteredStudent:
    """Makes the student a version of a registered model and moves the alias to it; stores the student first if it is missing.

    Args:
        uri: the value of `tracking.uri`; None is the embedded store under `home`.

    Raises:
        UsageError: the trial has no run in the store, or the store refuses.
        InfrastructureError: the store cannot be reached.
    """
    location = locate(uri, home)
    with settings():
        try:
            open_client(location)
            return _Registry(location).register(wanted, experiment, sweep, record, student)
        except UnreachableError as error:
            raise InfrastructureError(f"cannot register {wanted.name} in {location.shown}: {error}") from error
        except RejectedError as error:
            raise UsageError(f"the store {location.shown} refuses {wanted.name}: {error}") from error


class _Registry:
    """One store and its registry, independent of MLflow's global settings."""

    def __init__(self, location: Location) -> None:
        from mlflow.tracking import MlflowClient

        self._location = location
        self._client: Any = MlflowClient(location.uri, registry_uri=location.uri)

    def store(self, experiment: str, sweep: str, record: TrialRecord, load: Callable[[TrialRecord], TrainedStudent]) -> bool:
        """Logs the student unless it is there; returns whether it had to be logged."""
        run = attempt(lambda: self._run_of(experiment, sweep, record.trial.key))
        tags = _tags(sweep, record)
        if attempt(lambda: self._known_model(run, tags)) is not None:
            return False
        student = attempt(lambda: load(record))
        attempt(lambda: self._log(run, record, tags, student))
        return True

    def register(
        self, wanted: ModelAlias, experiment: str, sweep: str, record: TrialRecord, student: TrainedStudent
    ) -> RegisteredStudent:
        run = attempt(lambda: self._run_of(experiment, sweep, record.trial.key))
        tags = _tags(sweep, record)
        version = attempt(lambda: self._known_version(wanted.name, tags))
        reused = version is not None
        if version is None:
            model = attempt(lambda: self._known_model(run, tags))
            if model is None:
                model = attempt(lambda: self._log(run, record, tags, student))
            else:
                known = model.model_id
                attempt(lambda: self._add_files(known, student.files))
            version = attempt(lambda: self._add_version(wanted.name, model, run, tags))
        number = version.version
        attempt(lambda: self._client.set_registered_model_alias(wanted.name, wanted.alias, number))
        return RegisteredStudent(
            name=wanted.name,
            alias=wanted.alias,
            version=str(number),
            uri=wanted.uri,
            model_id=version.tags[_MODEL_ID],
            run_id=run.info.run_id,
            store=self._location.shown,
            reused=reused,
        )

    def _run_of(self, experiment: str, sweep: str, key: str) -> Any:
        """The run of the trial under the sweep of this home."""
        found = self._client.get_experiment_by_name(experiment)
        if found is not None:
            parents = self._search(found, {"role": "sweep", "sweep": sweep, "home_id": home_identity(self._location.home)})
            for parent in parents:
                if runs := self._search(found, {"mlflow.parentRunId": parent.info.run_id, "trial_key": key}):
                    return runs[0]
        raise RejectedError(
            f"trial {key} has no run there yet; write it with: stillhouse sync {sweep} --home {self._location.home}"
        )

    def _search(self, experiment: Any, tags: Mapping[str, str]) -> list[Any]:
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return list(self._client.search_runs([experiment.experiment_id], filter_string=condition))

    def _known_version(self, name: str, tags: Mapping[str, str]) -> Any:
        """The newest version with these weights of this trial."""
        versions = self._client.search_model_versions(f"name = '{name}'")
        same = [each for each in versions if all(each.tags.get(key) == tags[key] for key in ("trial_key", "weights_hash"))]
        return max(same, key=lambda each: int(each.version), default=None)

    def _known_model(self, run: Any, tags: Mapping[str, str]) -> Any:
        """The run's model that contains these weights; its external model contains none."""
        condition = f"source_run_id = '{run.info.run_id}'"
        found = self._client.search_logged_models([run.info.experiment_id], filter_string=condition)
        return next(
            (
                model
                for model in found
                if not is_external(model)
                and str(model.status) == "READY"
                and model.tags.get("weights_hash") == tags.get("weights_hash")
            ),
            None,
        )

    def _add_files(self, model_id: str, files: Mapping[str, Path]) -> None:
        with temporary_folder("model") as folder:
            _copy(files, folder)
            self._client.log_model_artifacts(model_id, str(folder), _EXTRA)

    def _log(self, run: Any, record: TrialRecord, tags: Mapping[str, str], student: TrainedStudent) -> Any:
        """Stores the model with its trial's run, in the run's own model where it has one.

        The run is unchanged: `mlflow.pytorch.log_model` would open and end it again.
        """
        model, fresh = self._external_model(run, tags), False
        if model is None:
            model, fresh = self._new_model(run, record, tags), True
        try:
            with temporary_folder("model") as folder:
                path = folder / "model"
                _save(model, path, run.info.run_id, student)
                self._client.log_model_artifacts(model.model_id, str(path))
        except BaseException:
            if fresh:
                attempt(partial(self._client.finalize_logged_model, model.model_id, "FAILED"))
            raise
        if fresh:
            self._link(run, record, model)
        else:
            self._client.set_logged_model_tags(model.model_id, dict(tags))
            self._client.delete_logged_model_tag(model.model_id, EXTERNAL_TAG)
        return self._client.get_logged_model(model.model_id)

    def _external_model(self, run: Any, tags: Mapping[str, str]) -> Any:
        """The model that the writer made for the run, whose weights are those of the tags; it becomes the stored one."""
        condition = f"source_run_id = '{run.info.run_id}'"
        found = self._client.search_logged_models([run.info.experiment_id], filter_string=condition)
        same = (model for model in found if is_external(model) and str(model.status) == "READY")
        return next((model for model in same if model.tags.get("weights_hash") == tags.get("weights_hash")), None)

    def _new_model(self, run: Any, record: TrialRecord, tags: Mapping[str, str]) -> Any:
        trial = record.trial
        settings = {f"student.{key}": value for key, value in trial.student.settings.items()} | trial.hyperparameters
        return self._client.create_logged_model(
            run.info.experiment_id,
            name=model_name(f"{trial.student.name}-{trial.key}"),
            source_run_id=run.info.run_id,
            tags=dict(tags),
            params=clean_params(settings),
            model_type=_MODEL_TYPE,
        )

    def _link(self, run: Any, record: TrialRecord, model: Any) -> None:
        """Shows a new model with its run and the run's numbers."""
        from mlflow.entities import LoggedModelOutput, Metric

        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
        when = run.info.end_time or run.info.start_time or 0
        numbers = [
            Metric(key, value, when, 0, model_id=model.model_id, run_id=run.info.run_id)
            for key, value in record.metrics.items()
            if run.data.metrics.get(key) == value
        ]
        self._client.log_batch(run.info.run_id, metrics=numbers)

    def _add_version(self, name: str, model: Any, run: Any, tags: Mapping[str, str]) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The address of the artifacts, not models:/<id>, which a database store would look up in MLflow's global store.
        version = self._client.create_model_version(
            name,
            source=model.artifact_location,
            run_id=run.info.run_id,
            tags={**tags, _MODEL_ID: model.model_id},
            model_id=model.model_id,
        )
        link = json.dumps([{"name": name, "version": version.version}])
        self._client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
        return version


def _save(logged: Any, path: Path, run_id: str, student: TrainedStudent) -> None:
    """An MLflow model on disk, in its pt2 format."""
    with warnings.catch_warnings():
        # mlflow.pyfunc warns about its own type hints when it is imported.
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")
        import mlflow.pyfunc
        import mlflow.pytorch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    kind = np.dtype(np.float32)
    example = student.example
    classes = _answer(student.model, example).shape[1]
    mlflow.pytorch.save_model(
        student.model,
        str(path),
        mlflow_model=Model(
            artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
        ),
        signature=ModelSignature(
            inputs=Schema([TensorSpec(kind, (-1, *example.shape[1:]))]), outputs=Schema([TensorSpec(kind, (-1, classes))])
        ),
        input_example=example,
        pip_requirements=[f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _REQUIRED],
        serialization_format="pt2",
    )
    _copy(student.files, path / _EXTRA)


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, path in files.items():
        shutil.copyfile(path, folder / name)


def _answer(student: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        logits: NDArray[np.float32] = student(torch.from_numpy(images)).numpy()
    return logits


def _tags(sweep: str, record: TrialRecord) -> dict[str, str]:
    trial = record.trial
    return clean_tags(
        {
            "sweep": sweep,
            "trial_key": trial.key,
            "student": trial.student.name,
            "model": trial.student.model,
            "method": trial.method,
            "teacher": trial.teacher,
            "seed": trial.seed,
            "weights_hash": record.weights_hash,
        }
    )
