"""A trained student of a sweep, rebuilt with exactly the weights that its record names."""

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
from stillhouse.spec.records import TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.home.sweep_home import SweepHome


def load_student(sweep_home: SweepHome, spec: SweepSpec, record: TrialRecord, data: ImageData) -> nn.Module:
    """The trained network of a finished trial, on the CPU in evaluation mode.

    Raises:
        UsageError: its weights are missing, damaged or not those of the record, or its model cannot be built.
    """
    assert record.weights is not None
    path = sweep_home.folder / record.weights
    redo = f"to train it again, run: {how_to_resume(sweep_home)}"
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
        student=describe(student, name=trial.student.model, input_shape=shape),
        new_student=lambda: rebuilt_student(trial.student, record.conversion, data.num_classes, data.input_shape),
        num_samples=len(data.train),
        epochs=trial.epochs,
    )
    modules: dict[str, Any] = {name: helper.module for name, helper in method.modules(setup).items()}
    return method.classifiers(student, modules)["student"]


def how_to_resume(sweep_home: SweepHome) -> str:
    """The command that continues the sweep."""
    return f"stillhouse resume {sweep_home.name} --home {sweep_home.home}"
