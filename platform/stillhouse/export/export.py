"""Writes one trained student into a folder, in every form, each compared with the student first."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse import tasks
from stillhouse.data.images import ImageData
from stillhouse.durable import write_json
from stillhouse.errors import UsageError
from stillhouse.export import drawn_example, example, int8, onnx, program, raw_input, text_example
from stillhouse.export.agreement import Agreement, Answer, agreement, latency_of
from stillhouse.export.card import render_card
from stillhouse.export.folder import MARK, check_target, filled
from stillhouse.export.quiet import measured_quietly
from stillhouse.models.exported_form import exported_form
from stillhouse.models.size import Latency, measure_latency
from stillhouse.models.weights import save_weights
from stillhouse.provenance import environment_facts
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord

WEIGHTS, PROGRAM, ONNX = "student.safetensors", "student.pt2", "student.onnx"
PREPROCESSING, EXAMPLE, CARD = "preprocessing.json", "example.py", "README.md"
FILES = (WEIGHTS, PROGRAM, ONNX, PREPROCESSING, EXAMPLE, CARD, MARK)
INT8 = int8.FILE
"""Of a student of 8 bits only."""
RAW = raw_input.FILE
"""On request: with the preprocessing inside."""
MAY_WRITE = (*FILES, INT8, RAW)

_FORMAT = 1
_RESIZES = {
    "crop": "cut to a square in the middle, then bilinear with antialiasing (PIL.ImageOps.fit)",
    "stretch": "height and width each to the student's, bilinear with antialiasing",
    "letterbox": "bilinear with antialiasing, the ratio kept, the rest black on the right or below",
}
_MAX_IMAGES = 512
_VERSIONS = ("torch", "onnx", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Student:
    """A finished trial with its trained network.

    Attributes:
        model: with the trial's weights, on the CPU, in evaluation mode.
        resized: whether the data set was resized; then users of the student must resize their images too.
        command: the one that began the sweep, without secrets.
        later_commands: those that continued it and trained something, without secrets.
        licence: of the student, as its user states it; empty if not stated.
        with_preprocessing: whether it is also written with its preprocessing inside.
    """

    facts: SweepFacts
    record: TrialRecord
    model: nn.Module
    data: ImageData
    resized: bool
    command: str = ""
    later_commands: tuple[str, ...] = ()
    licence: str = ""
    with_preprocessing: bool = False

    @property
    def teachers(self) -> list[TeacherFacts]:
        """The teachers of the trial; none for a student that learned alone."""
        return [teacher for teacher in self.facts.teachers if teacher.name in self.record.trial.teachers]


def export_student(student: Student, folder: str | Path, *, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Writes `FILES` into the folder, all of them or none, and returns the content of `export.json` with the `folder`.

    Args:
        folder: one that does not exist, is empty, or contains an earlier export, which is replaced.
        tell: called with a few words at each step.

    Raises:
        UsageError: the folder contains other files, or the student cannot be exported or its outputs change.
        InfrastructureError: the folder cannot be written.
    """
    onnx.require_packages()
    target = check_target(folder, (*MAY_WRITE, *student.data.files))
    with filled(target) as place:
        document = _fill(student, place, tell)
    return {**document, "folder": str(target)}


def _fill(student: Student, place: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    trial, data = student.record.trial, student.data
    metadata = {"trial": trial.key, "sweep": student.facts.name, "model": trial.student.model}
    digest = save_weights(student.model, place / WEIGHTS, metadata)
    # What operators packed was unpacked when the student was loaded and compared with its record.
    if not trial.student.compress and digest != student.record.weights_hash:
        raise UsageError(f"the weights of trial {trial.key} are not those of its record ({digest})")
    tell("tracing the student")
    network = exported_form(student.model)
    traced = program.make_program(network, data.input_shape)
    program.save_program(traced, place / PROGRAM, described(student))
    tell("writing ONNX")
    onnx.save_onnx(traced, place / ONNX, tasks.of(data).output, tasks.of(data).input_name)
    onnx.check_onnx(place / ONNX)
    tell(f"comparing on {'validation' if len(data.validation) else 'training'} images")
    answers = {"program": program.load_answer(place / PROGRAM), "onnx": onnx.load_answer(place / ONNX)}
    images = _whole(tasks.of(data).first_inputs(data, data.for_checks, _MAX_IMAGES), student)
    agreements = {
        form: asdict(agreement(network, answer, images, what=file))
        for (form, answer), file in zip(answers.items(), (PROGRAM, ONNX), strict=True)
    }
    by_int8 = _write_int8(student, place, tell)
    if by_int8 is not None:
        answers["int8"] = onnx.load_answer(place / INT8)
    if student.with_preprocessing:
        tell("writing ONNX with the preprocessing")
        agreements["raw"] = asdict(_write_raw(student, place))
    for file in (ONNX, INT8, RAW):
        if (place / file).exists():
            onnx.add_metadata(place / file, described(student))
    tell("measuring latency")
    latency, load = measured_quietly(lambda: _latencies(student, answers))
    any_length = getattr(student.model, "any_length", False)
    write_json(place / PREPROCESSING, preprocessing(data, resized=student.resized, any_length=any_length))
    script = example if tasks.of(data).drawn_input(data) is None else drawn_example
    for name, content in data.files.items():
        script = text_example
        (place / name).write_text(content, encoding="utf-8")
    (place / EXAMPLE).write_text(Path(str(script.__file__)).read_text(encoding="utf-8"), encoding="utf-8")
    in_ms = {form: {str(size): _milliseconds(one) for size, one in by_size.items()} for form, by_size in latency.items()}
    document = _document(student, agreements, in_ms) | {"int8": by_int8, "licence": student.licence or None}
    document["preprocessing_resizes"] = student.resized
    document["measured_on"] |= {"load_average": load.average, "cores": load.cores, "rounds": load.rounds, "busy": load.busy}
    (place / CARD).write_text(render_card(document), encoding="utf-8")
    files = (*MAY_WRITE, *data.files)
    document["files"] = {name: _file_facts(place / name) for name in files if name != MARK and (place / name).exists()}
    write_json(place / MARK, document)
    return document


def described(student: Student) -> dict[str, str]:
    """What the file records for programs that read it without its folder; lists are JSON."""
    data, record = student.data, student.record
    return {
        "sweep": student.facts.name,
        "trial": record.trial.key,
        "model": record.trial.student.model,
        "method": record.trial.method,
        "weights_hash": record.weights_hash or "",
        "dataset": data.name,
        "input_shape": json.dumps(list(data.input_shape)),
        "classes": json.dumps(list(data.class_names), ensure_ascii=False),
        "mean": json.dumps(list(data.mean)),
        "std": json.dumps(list(data.std)),
        "licence": student.licence or "not stated",
    }


def _write_raw(student: Student, place: Path) -> Agreement:
    """Writes the student with its preprocessing; returns how well it agrees.

    Raises:
        UsageError: its inputs are no images that are normalised, or the file computes something else.
    """
    data, task = student.data, tasks.of(student.data)
    images = data.for_checks.images[:2]
    plain = images.dtype == torch.uint8 and images.ndim == 4
    if not plain or not torch.equal(task.first_inputs(data, data.for_checks, 2), data.normalise(images)):
        raise UsageError(f"--with-preprocessing needs a student that reads images; the task {task.name} reads something else")
    if student.resized and data.fit != "crop":
        raise UsageError(
            f"--with-preprocessing cannot resize as dataset.options.fit: {data.fit} does; only crop can be written"
        )
    return raw_input.save_raw_onnx(exported_form(student.model), data, place / RAW, task.output, resized=student.resized)


def _write_int8(student: Student, place: Path, tell: Callable[[str], None]) -> dict[str, float] | None:
    """Writes a student of 8 bits as int8 ONNX too; returns how well it agrees. None for a student that has no such form.

    Raises:
        UsageError: the file computes something else.
    """
    if not int8.computes_in_int8(student.model):
        return None
    tell("writing int8 ONNX")
    data = student.data
    images = tasks.of(data).first_inputs(data, data.train, _MAX_IMAGES)
    try:
        int8.save_int8(student.model, data.input_shape, images, place / INT8, tasks.of(data).output)
    except int8.NotInt8Error as error:
        (place / INT8).unlink(missing_ok=True)
        tell(str(error))
        return None
    return int8.compare(student.model, onnx.load_answer(place / INT8), data)


def _whole(inputs: Tensor, student: Student) -> Tensor:
    """Inputs that are cut to the longest sample of their batch, at full length for a model of one length only."""
    if getattr(student.model, "any_length", True) or not tasks.of(student.data).any_length:
        return inputs
    return F.pad(inputs, (0, student.data.input_shape[0] - inputs.shape[1]))


def preprocessing(data: ImageData, *, resized: bool, any_length: bool = False) -> dict[str, Any]:
    """How to prepare pixels or texts for the student, and what its outputs mean.

    Args:
        resized: whether images were resized.
        any_length: whether the student reads texts of any length; otherwise they are padded.
    """
    if data.files:
        return _of_texts(data, any_length)
    if (drawn := tasks.of(data).drawn_input(data)) is not None:
        return _of_drawn_input(data, drawn)
    channels, height, width = data.input_shape
    task = tasks.of(data)
    shape = ["batch", *task.output_shapes(data.num_classes, data.input_shape)[task.output]]
    return {
        "input": {"name": onnx.INPUT, "dtype": "float32", "shape": ["batch", channels, height, width]},
        "output": {"name": task.output, "dtype": "float32", "shape": shape, "what": task.output},
        "input_shape": list(data.input_shape),
        "resize": _RESIZES[data.fit] if resized else None,
        "fit": data.fit,
        "normalisation": "(pixel - 255 mean) / (255 std) for each channel, pixels from 0 to 255",
        "orientation": "turned upright by the EXIF orientation",
        # With two or four channels, transparency is one of them.
        "ground": list(data.ground) if channels in (1, 3) else None,
        "mean": list(data.mean),
        "std": list(data.std),
        "class_names": list(data.class_names),
    }


def _of_texts(data: ImageData, any_length: bool) -> dict[str, Any]:
    """How to turn texts into token ids for the student, and what its outputs mean."""
    task, (length,) = tasks.of(data), data.input_shape
    shape = ["batch", "length" if any_length else length]
    return {
        "input": {"name": task.input_name, "dtype": "int64", "shape": shape},
        "output": {"name": task.output, "dtype": "float32", "shape": ["batch", data.num_classes], "what": task.output},
        "input_shape": [length],
        "any_length": any_length,
        **data.preparation,
        "class_names": list(data.class_names),
    }


def _of_drawn_input(data: ImageData, drawn: Mapping[str, int]) -> dict[str, Any]:
    """How to draw an input for the student, and what it returns."""
    task = tasks.of(data)
    shape = ["batch", *task.output_shapes(data.num_classes, data.input_shape)[task.output]]
    return {
        "input": {"name": task.input_name, "dtype": "float32", "shape": ["batch", sum(drawn.values())], "drawn": dict(drawn)},
        "output": {"name": task.output, "dtype": "float32", "shape": shape, "what": task.output},
        "range": [-1, 1],
        "class_names": list(data.class_names),
    }


def _latencies(student: Student, answers: Mapping[str, Answer]) -> dict[str, dict[int, Latency]]:
    shape = student.data.input_shape
    return {
        "eager": measure_latency(student.model, shape, budget_s=2.0),
        **{form: latency_of(answer, shape, student.model) for form, answer in answers.items()},
    }


def _milliseconds(latency: Latency) -> dict[str, float]:
    return {"p50": latency.p50_ms, "p95": latency.p95_ms}


def _document(student: Student, agreements: Mapping[str, Any], latency: Mapping[str, Any]) -> dict[str, Any]:
    facts, record, trial = student.facts, student.record, student.record.trial
    here = environment_facts()
    return {
        "stillhouse_export": _FORMAT,
        "sweep": facts.name,
        "trial": trial.key,
        "student": trial.student.model_dump(),
        "method": trial.method,
        "hyperparameters": trial.hyperparameters,
        "seed": trial.seed,
        "phase": trial.phase,
        "epochs": record.epochs_run,
        "weights_hash": record.weights_hash,
        "compression": record.compression,
        "derived_from": trial.student.derived_from,
        "output": tasks.of(student.data).output,
        "input": tasks.of(student.data).input_name,
        "any_length": getattr(student.model, "any_length", False),
        "drawn": tasks.of(student.data).drawn_input(student.data) is not None,
        "metric": facts.metric.model_dump(),
        "metrics": record.metrics,
        "teachers": [_teacher(teacher, facts.metric) for teacher in student.teachers],
        "dataset": {
            "name": student.data.name,
            "fingerprint": student.data.fingerprint,
            "input_shape": list(student.data.input_shape),
            "num_classes": student.data.num_classes,
            "sample": student.data.sample,
            "train_samples": len(student.data.train),
            "validation_samples": len(student.data.validation),
            "test_samples": facts.test_samples,
        },
        "views": facts.spec.get("views"),
        "training": facts.spec.get("training"),
        "trials": facts.planned,
        "trained": {
            "device": record.device,
            "started": record.started,
            "finished": record.finished,
            **{key: record.code.get(key) for key in ("version", "commit")},
            "command": student.command,
            "later_commands": list(student.later_commands),
        },
        "agreement": dict(agreements),
        "latency_ms": dict(latency),
        "measured_on": {"processor": here["processor"], "threads": torch.get_num_threads()},
        "versions": {
            **{key: here[key] for key in ("stillhouse", "python")},
            **{name: importlib.metadata.version(name) for name in _VERSIONS},
        },
    }


def _teacher(teacher: TeacherFacts, metric: Metric) -> dict[str, Any]:
    columns = (metric.column("validation"), metric.column("test"))
    sizes = teacher.model_dump(include={"name", "model", "key", "parameters", "size_bytes"})
    return sizes | {column: teacher.value(column) for column in columns}


def _file_facts(path: Path) -> dict[str, Any]:
    payload = path.read_bytes()
    return {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
