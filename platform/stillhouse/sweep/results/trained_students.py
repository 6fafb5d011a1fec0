"""A trained student of a sweep: found by its key and rebuilt with exactly the weights that its record names."""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from stillhouse import methods
from stillhouse.compress.storage import unpacked_state
from stillhouse.compress.students import chain_of, rebuilt_student
from stillhouse.data.datasets import ImageData
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.method import Setup
from stillhouse.errors import UsageError
from stillhouse.models.architecture import describe
from stillhouse.models.blueprint import blueprint
from stillhouse.models.weights import load_state, state_hash
from stillhouse.spec.controls import teacher_spec
from stillhouse.spec.load import validate_stored
from stillhouse.spec.records import TrialRecord
from stillhouse.spec.schema import SweepSpec, find_code_in
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep_data import load_sweep_data

BEST = "best"
_SHOWN_KEYS = 5


def find_trial(results: Results, wanted: str) -> TrialRecord:
    """The finished trial whose key is `wanted`, or the only one whose key begins with it.

    `best` is the trial that names the best student of all sizes on the report's page.

    Raises:
        UsageError: there is no such trial, there are several, or the trial did not finish and stored no weights.
    """
    sweep = results.facts.name
    if wanted == BEST:
        return _best(results)
    keys = sorted(results.sweep_home.ledger.keys())
    found = [key for key in keys if key == wanted] or [key for key in keys if wanted and key.startswith(wanted)]
    if not found:
        example = f", as in {keys[0]}" if keys else ""
        raise UsageError(f"sweep '{sweep}' has no trial '{wanted}'; give a key or the beginning of one{example}, or '{BEST}'")
    if len(found) > 1:
        shown = ", ".join(found[:_SHOWN_KEYS]) + (", ..." if len(found) > _SHOWN_KEYS else "")
        raise UsageError(f"'{wanted}' begins the keys of {len(found)} trials of sweep '{sweep}': {shown}; give more characters")
    record = results.sweep_home.ledger.read(found[0])
    if record is None:
        raise UsageError(f"the record of trial {found[0]} is damaged; run it again with: {_resume(results.sweep_home)}")
    if record.status != "finished" or record.weights is None:
        why = f"failed ({record.reason})" if record.status == "failed" else f"was stopped after {record.epochs_run} epochs"
        raise UsageError(f"trial {record.trial.key} {why}, so it stored no weights; choose a finished one")
    return record


def read_spec(sweep_home: SweepHome) -> SweepSpec:
    """The spec that the sweep was started with.

    Raises:
        UsageError: it is missing or damaged.
    """
    stored = sweep_home.read_spec()
    if stored is None:
        raise UsageError(f"sweep '{sweep_home.name}' has no spec under {sweep_home.folder}")
    spec = validate_stored(stored)
    find_code_in(Path.cwd(), spec)
    return spec


def load_data(results: Results, spec: SweepSpec) -> ImageData:
    """The sweep's data set as its students were trained on it; nothing is downloaded.

    Raises:
        UsageError: its files are missing, damaged or have changed.
    """
    data = load_sweep_data(spec, results.home, download=False)
    known = results.facts.dataset.get("fingerprint")
    if known and known != data.fingerprint:
        raise UsageError(
            f"data set {data.name} is not the one that sweep '{spec.name}' was trained on: its fingerprint was {known} "
            f"and is {data.fingerprint}; restore the earlier files"
        )
    return data


def load_student(sweep_home: SweepHome, spec: SweepSpec, record: TrialRecord, data: ImageData) -> nn.Module:
    """The trained network of a finished trial, on the CPU in evaluation mode.

    Raises:
        UsageError: its weights are missing, damaged or not those of the record, or its model cannot be built.
    """
    assert record.weights is not None
    path = sweep_home.folder / record.weights
    redo = f"to train it again, run: {_resume(sweep_home)}"
    if not path.exists():
        raise UsageError(f"the weights of trial {record.trial.key} are missing from {path}; {redo}")
    try:
        state = safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(f"{path} cannot be read ({error}); {redo}") from error
    if state_hash(state) != record.weights_hash:
        raise UsageError(f"{path} is damaged: its content is not what trial {record.trial.key} stored; {redo}")
    facts = data.num_classes, data.input_shape
    with torch.random.fork_rng(devices=[]):
        student = classifier = rebuilt_student(record.trial.student, record.conversion, *facts)
        chain = chain_of(record.trial.student)
        restored = unpacked_state(chain, record.conversion, student, classifier, state)
        if set(restored) != set(student.state_dict()):
            classifier = _whole_classifier(spec, record, data, student)
            restored = unpacked_state(chain, record.conversion, student, classifier, state)
    load_state(classifier, restored, source=str(path))
    return classifier.eval().requires_grad_(requires_grad=False)


def _best(results: Results) -> TrialRecord:
    best = results.best()
    if best is None:
        why = " that did not collapse" if results.collapsed else ""
        raise UsageError(f"sweep '{results.facts.name}' has no finished trial to export{why}")
    return find_trial(results, best.key)


def _whole_classifier(spec: SweepSpec, record: TrialRecord, data: ImageData, student: nn.Module) -> nn.Module:
    """The student with the helpers that its method makes part of the classifier, assembled as the trainer does it."""
    trial = record.trial
    for folder in spec.method_paths:
        methods.add_folder(Path(folder))
    method = make_method(trial.method, trial.hyperparameters)
    teachers = [teacher_spec(spec, name) for name in trial.teachers]
    shape = data.input_shape
    architectures = [blueprint(each.model, each.options, data.num_classes, shape).architecture for each in teachers]
    setup = Setup(
        teacher=architectures[0] if architectures else None,
        student=describe(student, name=trial.student.name, input_shape=shape),
        new_student=lambda: rebuilt_student(trial.student, record.conversion, data.num_classes, data.input_shape),
        num_samples=len(data.train),
        epochs=trial.epochs,
    )
    modules: dict[str, Any] = {name: helper.module for name, helper in method.modules(setup).items()}
    return method.classifiers(student, modules)["student"]


def _resume(sweep_home: SweepHome) -> str:
    return f"stillhouse resume {sweep_home.name} --home {sweep_home.home}"
