"""Writes one sweep into an MLflow store. Runs that are there already are found and not written again."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml

from stillhouse.spec.late_metrics import is_late
from stillhouse.spec.records import TEACHER_JOINT, SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.secret_masking import mask_data, mask_text
from stillhouse.temporary_folders import temporary_folder
from stillhouse.tracking.entries import (
    Point,
    RunEntry,
    clip,
    comparison,
    data_facts,
    milliseconds,
    sweep_note,
    sweep_points,
    sweep_tags,
    trial_entry,
)
from stillhouse.tracking.external import ExternalModels
from stillhouse.tracking.locations import Location, home_identity
from stillhouse.tracking.store import RejectedError, attempt, open_client
from stillhouse.tracking.view import experiment_view, run_address, sweep_view, sweep_view_id, view_address

# MLflow takes 1000 metrics, 100 params and 1 MB in a batch; 25 params of 6000 characters in UTF-8 stay under it.
_METRICS_PER_BATCH = 500
_PARAMS_PER_BATCH = 25
_RUNS_PER_PAGE = 1000

_DATA_FILES = {".csv", ".json", ".md", ".txt", ".yaml", ".yml"}
_PAGES = {".html"}

_ENDED = {"FINISHED", "FAILED"}

Outcome = Literal["created", "skipped"]


@dataclass
class _Child:
    """What is known of a child run in the store.

    Attributes:
        complete: whether the run has ended, which is the last thing to be written.
        params: that the run had when the store was opened. They cannot be changed.
    """

    run_id: str
    digest: str | None
    teacher: str | None
    status: str
    complete: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


class SweepWriter:
    """The parent run of one sweep and its children. Not for several threads at once.

    Every method raises `UnreachableError` (try again later) or `RejectedError` (do not try again).
    """

    def __init__(self, location: Location, experiment: str, facts: SweepFacts) -> None:
        """Opens the store and finds or makes the experiment, its saved views, the parent run; reads its children."""
        self.location = location
        self._facts = facts
        self._client = open_client(location)
        self._children: dict[str, _Child] = {}
        self._uncertain: str | None = None
        home_id = attempt(lambda: home_identity(location.home))
        self.experiment_id = attempt(lambda: self._experiment(experiment))
        self.run_id = attempt(lambda: self._parent(home_id))
        self._models = ExternalModels(self._client, self.experiment_id)
        attempt(self._read_children)
        self._save_views()

    def know(self, facts: SweepFacts) -> None:
        """Replaces the facts: trials written from now on are compared with the teachers in them."""
        self._facts = facts

    def write_trial(self, record: TrialRecord) -> Outcome:
        """Writes the child run of `record`, unless it is in the store with the same content."""
        entry = trial_entry(record, self._facts)
        if self._uncertain == entry.key:
            # The answer to the request that creates it was lost: the run may exist.
            attempt(lambda: self._read_children(entry.key))
        child = self._children.get(entry.key)
        if child is not None and child.complete and child.digest == entry.digest:
            return self._add_later(child, entry)
        if child is not None and child.digest != entry.digest:
            # Params cannot be changed, and two attempts in one curve would mislead: the new record gets a new run.
            stale = child.run_id
            attempt(lambda: self._models.remove_of(stale))
            attempt(lambda: self._client.delete_run(stale))
            del self._children[entry.key]
            child = None
        attempt(lambda: self._write_entry(entry, child))
        return "created"

    def _add_later(self, child: _Child, entry: RunEntry) -> Outcome:
        """Adds the numbers to a complete run that were measured after it was written."""
        later = [point for point in entry.points if point.step == 0 and is_late(point.name)]
        changed = [point for point in later if child.metrics.get(point.name) != point.value]
        if not changed:
            return "skipped"
        attempt(lambda: self._log(child.run_id, changed, {}, _now()))
        child.metrics |= {point.name: point.value for point in changed}
        return "created"

    def finish(self, facts: SweepFacts, artifacts: Mapping[str, Path], best: Mapping[str, float]) -> list[str]:
        """Completes comparisons, logs the summary, the spec and the files, and ends the parent run.

        Args:
            facts: as they are at the end.
            artifacts: files or folders by name. A name with a suffix or a slash is the path under which the file is
                stored; any other name is a label, and the file is stored under its own name.
            best: as for `sweep_points`.

        Returns:
            a sentence for each file that is missing.
        """
        self._facts = facts
        for child in self._children.values():
            attempt(partial(self._compare, child))
        self._save_views()
        points = sweep_points(facts, [child.status for child in self._children.values()], best)
        attempt(lambda: self._log(self.run_id, points, {}, _now()))
        attempt(lambda: self._tag_parent(facts))
        for teacher in facts.teachers:
            attempt(partial(self._log_teacher, teacher))
        missing = self._log_files(facts, artifacts)
        self.end("FINISHED")
        return missing

    def addresses(self) -> dict[str, str]:
        """The page of each complete child run by trial key, and of the parent by the empty key."""
        server = self.location.pages
        if server is None:
            return {}
        runs = {key: child.run_id for key, child in sorted(self._children.items()) if child.complete}
        return {key: run_address(server, self.experiment_id, run_id) for key, run_id in {"": self.run_id, **runs}.items()}

    def end(self, status: Literal["FINISHED", "KILLED"]) -> None:
        attempt(lambda: self._client.set_terminated(self.run_id, status))

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                created = self._client.create_experiment(name, artifact_location=self.location.artifacts)
            except MlflowException as error:
                # Another driver made it at the same moment.
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or not self._client.get_experiment_by_name(name):
                    raise
                created = self._client.get_experiment_by_name(name).experiment_id
            self._client.set_experiment_tag(created, "mlflow.experimentKind", "custom_model_development")
            return str(created)
        if found.lifecycle_stage != "active":
            raise RejectedError(f"experiment {name!r} was deleted: restore it (mlflow experiments restore) or name another")
        return str(found.experiment_id)

    def _parent(self, home_id: str) -> str:
        tags = sweep_tags(self._facts, home_id=home_id)
        condition = _all_equal({name: tags[name] for name in ("sweep", "role", "home_id")})
        if found := self._search(condition):
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
        else:
            started = milliseconds(self._facts.started) or None
            name = self._facts.name
            run_id = str(self._client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=name).info.run_id)
        self._client.log_inputs(run_id, self._dataset_inputs())
        self._tag_parent(self._facts, run_id)
        return run_id

    def _tag_parent(self, facts: SweepFacts, run_id: str | None = None) -> None:
        from mlflow.entities import RunTag

        pages = self.location.pages
        trials = view_address(pages, self.experiment_id, sweep_view_id(facts.name)) if pages else None
        tags = sweep_tags(facts, home_id=home_identity(self.location.home)) | {"mlflow.note.content": sweep_note(facts, trials)}
        listed = [RunTag(name, value) for name, value in tags.items()]
        self._client.log_batch(run_id or self.run_id, tags=listed)

    def _read_children(self, key: str | None = None) -> None:
        """Reads the child runs in the store; of several runs of one trial, the first complete one stays."""
        wanted = {"mlflow.parentRunId": self.run_id} | ({"trial_key": key} if key else {})
        for run in self._search(_all_equal(wanted)):
            tags = run.data.tags
            if "trial_key" not in tags:
                continue
            child = _Child(
                run_id=run.info.run_id,
                digest=tags.get("record_digest"),
                teacher=tags.get("teacher"),
                status=tags.get("status", "failed"),
                complete=run.info.status in _ENDED,
                metrics=dict(run.data.metrics),
                params=run.data.params,
            )
            known = self._children.get(tags["trial_key"])
            if known is not None and known.run_id != child.run_id:
                keep, drop = (known, child) if known.complete or not child.complete else (child, known)
                self._client.delete_run(drop.run_id)
                child = keep
            self._children[tags["trial_key"]] = child

    def _search(self, condition: str) -> list[Any]:
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                filter_string=condition,
                max_results=_RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs += page
            if not (token := page.token):
                return runs

    def _write_entry(self, entry: RunEntry, child: _Child | None) -> None:
        """Creates, fills and ends a run. A run that has ended has everything of the record `record_digest`.

        A run that was left incomplete is filled again: every point has the time of the record, so writing it a second time
        changes nothing.
        """
        fresh = child is None
        if child is None:
            self._uncertain = entry.key
            run = self._client.create_run(
                self.experiment_id,
                start_time=entry.started_ms or None,
                tags=entry.tags | {"mlflow.parentRunId": self.run_id, "record_digest": entry.digest},
                run_name=clip(entry.name, 250),
            )
            teacher, status = entry.tags.get("teacher"), entry.tags["status"]
            child = _Child(run_id=run.info.run_id, digest=entry.digest, teacher=teacher, status=status)
            self._children[entry.key] = child
            self._uncertain = None
            self._client.log_inputs(child.run_id, self._dataset_inputs())
        model_id = self._models.student(child.run_id, entry, fresh=fresh)
        known = self._models.numbers(model_id) if model_id is not None and not fresh else {}
        # The folder of the data may have been moved since the run was begun.
        params = {name: value for name, value in entry.params.items() if name not in child.params}
        self._log(child.run_id, entry.points, params, entry.finished_ms, model_id, known)
        self._client.set_terminated(child.run_id, entry.status, end_time=entry.finished_ms or None)
        child.complete = True
        child.metrics = {point.name: point.value for point in entry.points if point.step == 0}

    def _log(
        self,
        run_id: str,
        points: Sequence[Point],
        params: Mapping[str, str],
        when_ms: int,
        model_id: str | None = None,
        known: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Metrics and params in as few batches as the limits allow; the metrics of step 0 also for the model `model_id`.

        Args:
            known: numbers that the model has already. A database refuses another value for the same time (mlflow 3.17: UNIQUE
                constraint failed: logged_model_metrics), so a number that changed gets the present time, and one that did not
                is only written for the run.
        """
        from mlflow.entities import Metric, Param

        def metric(point: Point) -> Metric:
            new = point.name not in known
            changed = point.step == 0 and not new and known[point.name] != point.value
            owner = model_id if point.step == 0 and (new or changed) else None
            when = _now() if changed else when_ms if point.when_ms is None else point.when_ms
            return Metric(point.name, point.value, when, point.step, model_id=owner, run_id=run_id)

        metrics = [metric(point) for point in points]
        listed = [Param(name, value) for name, value in params.items()]
        count = max(_pieces(metrics, _METRICS_PER_BATCH), _pieces(listed, _PARAMS_PER_BATCH), 1)
        for number in range(count):
            self._client.log_batch(
                run_id,
                metrics=metrics[number * _METRICS_PER_BATCH :][:_METRICS_PER_BATCH],
                params=listed[number * _PARAMS_PER_BATCH :][:_PARAMS_PER_BATCH],
            )

    def _compare(self, child: _Child) -> None:
        """Logs the comparison with the teacher where the teacher's numbers became known after the trial."""
        taught_by = tuple(child.teacher.split(TEACHER_JOINT)) if child.teacher else ()
        wanted = comparison(child.metrics, taught_by, self._facts.teachers, self._facts.metric)
        changed = [Point(name=name, value=value) for name, value in wanted.items()]
        changed = [point for point in changed if child.metrics.get(point.name) != point.value]
        if changed:
            self._log(child.run_id, changed, {}, _now())
            child.metrics |= {point.name: point.value for point in changed}

    def _log_teacher(self, teacher: TeacherFacts) -> None:
        """Logs the teacher as a model of the parent run, with the numbers that the summary of the sweep has as well."""
        model_id, points = self._models.teacher(self.run_id, self._facts.name, teacher, self._facts.metric)
        named = [Point(name=f"teacher_{teacher.name}_{point.name}", value=point.value) for point in points]
        when = milliseconds(self._facts.started) or _now()
        # A teacher's numbers differ between runs of the sweep: its latency, what it forwarded.
        self._log(self.run_id, named, {}, when, model_id, self._models.numbers(model_id))

    def _dataset_inputs(self) -> list[Any]:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        facts = mask_data(self._facts.dataset)
        digest = str(facts.get("fingerprint") or "")[:36]
        if not facts.get("name") or not digest:
            return []
        source = json.dumps(mask_data(data_facts(self._facts)), default=str)
        profile = json.dumps(facts, default=str)
        dataset = Dataset(name=str(facts["name"])[:500], digest=digest, source_type="local", source=source, profile=profile)
        return [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]

    def _save_views(self) -> None:
        for view in (experiment_view(self._facts.metric), sweep_view(self._facts.name, self._facts.metric)):
            attempt(partial(self._client.set_experiment_tag, self.experiment_id, view.tag, view.value))

    def _log_files(self, facts: SweepFacts, artifacts: Mapping[str, Path]) -> list[str]:
        missing = []
        with temporary_folder("tracking") as staging:
            (staging / "spec.yaml").write_text(yaml.safe_dump(_plain(mask_data(facts.spec)), sort_keys=False), encoding="utf-8")
            for name, path in artifacts.items():
                if not path.exists():
                    missing.append(f"no artifact {name!r} at {path}")
                    continue
                attempt(partial(_stage, path, staging / _destination(name, path), self.location))
            attempt(lambda: self._client.log_artifacts(self.run_id, str(staging)))
        return missing


def _destination(name: str, path: Path) -> Path:
    named = Path(name)
    inside = not named.is_absolute() and ".." not in named.parts
    return named if inside and (named.suffix or len(named.parts) > 1) else Path(path.name)


def _stage(path: Path, destination: Path, location: Location) -> None:
    """Copies a file or folder to the folder that is uploaded, with the credentials in texts masked."""
    if path.is_dir():
        for item in sorted(path.rglob("*")):
            if item.is_file():
                _stage(item, destination / item.relative_to(path), location)
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in _DATA_FILES | _PAGES:
        shutil.copyfile(path, destination)
        return
    text = path.read_bytes().decode(errors="surrogateescape")
    hidden = location.hide(text) if path.suffix in _PAGES else mask_text(text)
    destination.write_bytes(hidden.encode(errors="surrogateescape"))


def _all_equal(tags: Mapping[str, str]) -> str:
    """A search condition. MLflow has no escape inside quotes, so a name with both kinds of quotes cannot be searched for."""
    parts = []
    for name, value in tags.items():
        quote = '"' if "'" in value else "'"
        parts.append(f"tags.`{name}` = {quote}{value}{quote}")
    return " and ".join(parts)


def _pieces(items: Sequence[Any], size: int) -> int:
    return -(-len(items) // size)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _now() -> int:
    return int(time.time() * 1000)
