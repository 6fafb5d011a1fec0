"""Teachers and students as MLflow's LoggedModels whose weights stay in the sweep's home ("external" to MLflow).

Does what `mlflow.create_external_model` does, but uploads no `MLmodel` file for each model and needs no global store;
`docs/decisions/` has the costs of both.
"""

from collections.abc import Mapping
from typing import Any

from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TeacherFacts
from stillhouse.tracking.entries import Point, RunEntry, clean_name, clean_tags, teacher_numbers

EXTERNAL_TAG = "mlflow.model.isExternal"
_EXTERNAL = {EXTERNAL_TAG: "true"}
_STUDENT_TAGS = ("sweep", "trial_key", "student", "model", "method", "seed", "teacher", "weights", "weights_hash")


class ExternalModels:
    """The LoggedModels of one experiment; an existing model is found by its run and name."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id

    def student(self, run_id: str, entry: RunEntry, *, fresh: bool) -> str | None:
        """The id of a finished trial's model, made when missing; None for a trial that did not finish.

        Args:
            fresh: the run was just made, so it has no model yet.
        """
        if entry.tags["status"] != "finished":
            return None
        tags = {name: entry.tags[name] for name in _STUDENT_TAGS if name in entry.tags}
        name = model_name(f"{entry.tags['student']}-{entry.key}")
        # Of a run whose student is stored, that model is the student's.
        known = {} if fresh else {model.name: model.model_id for model in self._search(run_id)}
        return self._ensure(known, run_id, name, "student", tags, entry.params)

    def teacher(self, run_id: str, sweep: str, teacher: TeacherFacts, metric: Metric) -> tuple[str, list[Point]]:
        """The id of a teacher's model, made when missing, and the numbers to log with it."""
        tags = clean_tags({"sweep": sweep, "role": "teacher", "model": teacher.model, "weights_hash": teacher.key})
        name = model_name(f"teacher-{teacher.name}-{teacher.key[:12]}")
        model_id = self._ensure(self._of_run(run_id), run_id, name, "teacher", tags, {"model": teacher.model})
        return model_id, [Point(name=name, value=value) for name, value in teacher_numbers(teacher, metric).items()]

    def numbers(self, model_id: str) -> dict[str, float]:
        """The latest value of each number that a model has."""
        metrics = self._client.get_logged_model(model_id).metrics or []
        return {each.key: each.value for each in sorted(metrics, key=lambda each: (each.step, each.timestamp))}

    def remove_of(self, run_id: str) -> None:
        """Removes the models of a run that is replaced, except registered ones: those belong to their users."""
        for model in self._search(run_id):
            if "mlflow.modelVersions" not in model.tags:
                self._client.delete_logged_model(model.model_id)

    def _of_run(self, run_id: str) -> dict[str, str]:
        """Ids of the run's external models by name."""
        return {model.name: model.model_id for model in self._search(run_id) if is_external(model)}

    def _search(self, run_id: str) -> list[Any]:
        found = self._client.search_logged_models([self._experiment_id], filter_string=f"source_run_id = '{run_id}'")
        return list(found)

    def _ensure(
        self,
        known: Mapping[str, str],
        run_id: str,
        name: str,
        kind: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
    ) -> str:
        from mlflow.entities import LoggedModelOutput

        if (model_id := known.get(name)) is None:
            model = self._client.create_logged_model(
                self._experiment_id,
                name=name,
                source_run_id=run_id,
                tags={**tags, **_EXTERNAL},
                params=dict(params),
                model_type=kind,
            )
            model_id = str(model.model_id)
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        self._client.finalize_logged_model(model_id, "READY")
        return model_id


def is_external(model: Any) -> bool:
    """Whether the weights of a LoggedModel are stored outside MLflow."""
    return all(model.tags.get(name) == value for name, value in _EXTERNAL.items())


def model_name(text: str) -> str:
    """`text` as a LoggedModel's name, which must not contain / : . % or quotes."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in clean_name(text))
