"""Exports one student of a sweep, and registers it in MLflow on request."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.export import MAY_WRITE, Student, check_target, export_student, require_packages
from stillhouse.spec.secret_masking import mask_text
from stillhouse.sweep.results.mlflow_sync import experiment_of, trained_student
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.results.trained_students import find_trial, load_data, read_spec
from stillhouse.tracking import parse_registration, register_student


def export_trial(
    home: str | Path,
    name: str,
    trial: str,
    folder: str | Path,
    *,
    register: str | None = None,
    overrides: Sequence[str] = (),
    with_preprocessing: bool = False,
    licence: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes the student of a trial into a folder; see `stillhouse.export`.

    Args:
        trial: a key, the beginning of one, or `best`.
        folder: does not exist, is empty, or holds an earlier export.
        register: `MODEL@ALIAS` registers the student in the sweep's MLflow store under this name and alias.
        overrides: `KEY=VALUE` for the stored spec, such as `dataset.root=/new/place` of the same data.
        with_preprocessing: also writes ONNX that takes raw images.
        licence: of the student, noted in its files; empty if not stated.
        tell: called with a line for each step.

    Returns:
        `export.json` with the `folder`, and `registered`: None, or the model's name, alias, version, address and run.

    Raises:
        UsageError: there is no such sweep or trial, its weights are missing or damaged, or the folder holds other files.
        InfrastructureError: the folder cannot be written, or the tracking store cannot be reached.
    """
    wanted = None if register is None else parse_registration(register)
    require_packages()
    check_target(folder, MAY_WRITE)
    results = Results.read(home, name)
    record = find_trial(results, trial)
    spec = read_spec(results.sweep_home, overrides)
    tell(f"trial {record.trial.key}: {record.trial.method} {record.trial.student.name}")
    data = load_data(results, spec)
    trained = trained_student(results, spec, record, data)
    student = Student(
        facts=results.facts,
        record=record,
        model=trained.model,
        data=data,
        resized=spec.dataset.size is not None,
        command=mask_text(results.facts.command),
        later_commands=tuple(mask_text(run.command) for run in results.facts.later_runs if run.command),
        licence=licence,
        with_preprocessing=with_preprocessing,
    )
    document = export_student(student, folder, tell=tell)
    if wanted is None:
        return {**document, "registered": None}
    tell(f"registering {register}")
    written = {name: Path(document["folder"]) / name for name in ("README.md", "preprocessing.json")}
    done = register_student(
        wanted,
        spec.tracking.uri,
        home=results.home,
        experiment=experiment_of(spec),
        sweep=name,
        record=record,
        student=replace(trained, files={**trained.files, **written}),
    )
    return {**document, "registered": done.to_json()}
