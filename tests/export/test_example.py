"""What the exported example prints for one image; tests/export/test_exported_files.py runs it on real exports."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from stillhouse.data.decode import decode_image
from stillhouse.data.images import ImageData, channel_statistics, split_of
from stillhouse.export import Student, export_student
from stillhouse.export.example import describe, prepare, resize
from stillhouse.models.registry import build_model
from stillhouse.models.weights import state_hash
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord


def test_logits_become_the_likeliest_class_and_its_probability() -> None:
    facts: dict[str, Any] = {"output": {"what": "logits"}, "class_names": ["cat", "dog"]}
    assert describe(np.array([0.0, math.log(3)], np.float32), facts) == "dog (0.750)"


@pytest.mark.parametrize(("outputs", "printed"), [([0.5], "0.5"), ([-12.25, 3.0], "-12.25 3")])
def test_other_outputs_are_printed_as_numbers(outputs: list[float], printed: str) -> None:
    facts: dict[str, Any] = {"output": {"what": "angle"}, "class_names": []}
    assert describe(np.array(outputs, np.float32), facts) == printed


def facts_of(channels: int, ground: tuple[int, int, int] | None) -> dict[str, Any]:
    """Mean 0 and deviation 1/255: prepared images are the pixels themselves."""
    listed = None if ground is None else list(ground)
    return {"input_shape": [channels, 6, 6], "mean": [0.0] * channels, "std": [1 / 255] * channels, "ground": listed}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "P"])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_an_image_is_prepared_as_the_data_set_decodes_it(channels: int, mode: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 4), np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "x.png", exif=exif)
    ground = (200, 10, 90)
    decoded, _ = decode_image(tmp_path / "x.png", size=6, grey=channels == 1, where="x", ground=ground)
    prepared = prepare(str(tmp_path / "x.png"), facts_of(channels, ground))
    assert np.abs(prepared - decoded).max() < 1e-4


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_every_number_of_channels_is_prepared_plane_by_plane(channels: int, mode: str, tmp_path: Path) -> None:
    planes = np.random.default_rng(1).integers(0, 256, (6, 6, channels), np.uint8)
    Image.fromarray(planes if channels > 1 else planes[:, :, 0], mode).save(tmp_path / "x.png")
    prepared = prepare(str(tmp_path / "x.png"), facts_of(channels, None))
    assert np.abs(prepared - planes.transpose(2, 0, 1)).max() < 1e-4


def test_a_transparent_plane_does_not_weight_the_others_when_it_is_resized(tmp_path: Path) -> None:
    planes = np.random.default_rng(2).integers(0, 256, (4, 24, 24), np.uint8)
    Image.fromarray(planes.transpose(1, 2, 0)).save(tmp_path / "x.png")
    prepared = prepare(str(tmp_path / "x.png"), facts_of(4, None))
    for plane, one in zip(prepared, planes, strict=True):
        fitted = ImageOps.fit(Image.fromarray(one), (6, 6), Image.Resampling.BILINEAR)
        assert np.abs(plane - np.asarray(fitted)).max() < 1e-4


def exported_student(channels: int, folder: Path) -> None:
    """Exports an untrained student of made-up images with that many channels."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, channels, 6, 6), np.uint8), np.arange(40) % 2
    mean, std = channel_statistics(images)
    split = split_of((images, labels))
    data = ImageData(
        name="made_up",
        num_classes=2,
        input_shape=(channels, 6, 6),
        class_names=("a", "b"),
        fingerprint="made up",
        mean=mean,
        std=std,
        train=split,
        validation=split,
        read_test=lambda: split,
    )
    model = build_model("mlp", num_classes=2, input_shape=data.input_shape, hidden=[4]).eval()
    trial = Trial(key="k", student=StudentChoice(name="mlp", model="mlp"), method="scratch", seed=0, epochs=1)
    metrics = {"validation_accuracy": 0.5, "test_accuracy": 0.5, "parameters": 1.0, "size_bytes": 1.0, "macs": 1.0}
    digest = state_hash(model.state_dict())
    record = TrialRecord(trial=trial, status="finished", epochs_run=1, metrics=metrics, weights_hash=digest)
    facts = SweepFacts(name="s", spec={}, dataset={"name": "made_up"}, baseline="scratch", planned=1)
    export_student(Student(facts=facts, record=record, model=model, data=data, resized=False), folder)


def test_the_example_of_an_export_runs_on_image_files_with_two_channels(tmp_path: Path) -> None:
    exported_student(2, tmp_path / "student")
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9, 2), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    command = [sys.executable, str(tmp_path / "student" / "example.py"), str(tmp_path / "x.png")]
    answers = [
        subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120, check=True).stdout
        for flags in ([], ["--onnx"])
    ]
    assert answers[0] == answers[1]
    assert answers[0].startswith(f"{tmp_path / 'x.png'}: ")


def test_detections_are_printed_as_boxes_of_classes() -> None:
    facts = {"output": {"what": "detections"}, "class_names": ["Platelets", "RBC"]}
    outputs = np.zeros((100, 6), np.float32)
    outputs[:, 5] = -1
    assert describe(outputs, facts) == "nothing"
    outputs[:2] = [[1, 2, 30, 40, 0.91, 1], [3, 3, 9, 9, 0.5, 0]]
    assert describe(outputs, facts) == "RBC (0.910) at 1 2 30 40; Platelets (0.500) at 3 3 9 9"


def test_images_are_resized_as_those_of_the_data_set() -> None:
    plane = Image.new("L", (20, 16), 255)
    assert np.asarray(resize(plane, (30, 10), "stretch")).shape == (10, 30)
    boxed = np.asarray(resize(plane, (40, 40), "letterbox"))
    # 20 x 16 pixels become 40 x 32; the rest is black.
    assert boxed[:32].min() == 255
    assert boxed[32:].max() == 0
