"""What stands in the folder of an export, looked at by other means than those that wrote it."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from stillhouse.export import FILES
from stillhouse.models.weights import state_hash

Exported = tuple[Any, Path, dict[str, Any]]


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "preprocessing.json").read_text())
    return facts


def prepared(folder: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The formula of preprocessing.json in double precision."""
    facts = facts_of(folder)
    mean, std = (np.array(facts[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    result: NDArray[np.float32] = ((pixels / 255.0 - mean) / std).astype(np.float32)
    return result


def numbers_of(card: str) -> dict[str, str]:
    """The rows of two cells of the card's tables."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card, re.MULTILINE))


def test_all_files_stand_there_with_the_content_that_the_document_names(exported: Exported) -> None:
    _, folder, document = exported
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert json.loads((folder / "export.json").read_text()) | {"folder": str(folder), "registered": None} == document
    for name, facts in document["files"].items():
        payload = (folder / name).read_bytes()
        assert facts == {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


def test_the_weights_are_those_of_the_record(exported: Exported) -> None:
    swept, folder, document = exported
    weights = {name: torch.from_numpy(value) for name, value in load_file(folder / "student.safetensors").items()}
    assert state_hash(weights) == swept.record().weights_hash == document["weights_hash"]


def test_preprocessing_says_what_the_data_set_does(exported: Exported) -> None:
    swept, folder, _ = exported
    data, facts = swept.data(), facts_of(folder)
    assert facts["class_names"] == list("0123456789")
    assert facts["input_shape"] == [1, 8, 8]
    assert facts["resize"] is None
    pixels = data.train.images.numpy() / 255.0
    assert facts["mean"] == pytest.approx([pixels.mean()])
    assert facts["std"] == pytest.approx([pixels.std()])


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_the_program_answers_as_the_student_for_any_batch(exported: Exported, count: int) -> None:
    swept, folder, _ = exported
    pixels = swept.data().validation.images[:count]
    program = torch.export.load(folder / "student.pt2").module()
    with torch.no_grad():
        logits = program(torch.from_numpy(prepared(folder, pixels.numpy())))
    torch.testing.assert_close(logits, swept.logits(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_onnxruntime_answers_as_the_student_for_any_batch(exported: Exported, count: int) -> None:
    swept, folder, _ = exported
    pixels = swept.data().validation.images[:count]
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": prepared(folder, pixels.numpy())})
    np.testing.assert_allclose(logits, swept.logits(pixels).numpy(), atol=1e-5, rtol=0)


def test_the_onnx_file_is_whole_and_names_its_ends(exported: Exported) -> None:
    _, folder, _ = exported
    model = onnx.load(folder / "student.onnx", load_external_data=False)
    ends = [
        (end.name, [size.dim_param or size.dim_value for size in end.type.tensor_type.shape.dim])
        for end in (*model.graph.input, *model.graph.output)
    ]
    assert ends == [("images", ["batch", 1, 8, 8]), ("logits", ["batch", 10])]
    assert not [weight.name for weight in model.graph.initializer if weight.external_data]


def test_the_card_has_the_numbers_of_the_record(exported: Exported) -> None:
    swept, folder, document = exported
    metrics, rows = swept.record().metrics, numbers_of((folder / "README.md").read_text())
    assert document["metrics"] == metrics
    assert rows["test accuracy"] == f"{metrics['test_accuracy']:.4f}"
    assert rows["validation accuracy"] == f"{metrics['validation_accuracy']:.4f}"
    assert rows["parameters"] == f"{metrics['parameters']:,.0f}"
    assert rows["weights"] == f"{metrics['size_bytes']:,.0f} bytes"
    assert rows["teacher"] == "none"
    assert rows["method"] == "scratch"
    assert rows["seed"] == "3 (search phase)"
    assert rows["student's weights"] == f"`{swept.record().weights_hash}`"
    assert rows["data fingerprint"] == f"`{swept.data().fingerprint}`"


def test_the_card_shows_the_measured_differences_and_latencies(exported: Exported) -> None:
    _, folder, document = exported
    card = (folder / "README.md").read_text()
    difference = document["agreement"]["onnx"]["largest_difference"]
    assert 0 <= difference <= 1e-5
    assert f"| ONNX, by onnxruntime | student.onnx | {difference:.3g} | 100 of 100 |" in card
    for form, label in (("eager", "eager PyTorch"), ("program", "torch.export program"), ("onnx", "ONNX, by onnxruntime")):
        latency = document["latency_ms"][form]
        assert all(0 < latency[size]["p50"] <= latency[size]["p95"] for size in ("1", "64"))
        numbers = " | ".join(f"{latency[size][part]:.3g}" for size in ("1", "64") for part in ("p50", "p95"))
        assert f"| {label} | {numbers} |" in card


def test_no_password_leaves_with_the_student(exported: Exported) -> None:
    _, folder, _ = exported
    for path in folder.iterdir():
        assert b"hunter2" not in path.read_bytes()
    assert "postgresql://***@db/x" in (folder / "README.md").read_text()


def test_the_snippet_of_the_card_runs(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept, folder, _ = exported
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    exec(snippet, {})
    black = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    assert capsys.readouterr().out.strip() == str(int(swept.logits(black).argmax()))


@pytest.mark.parametrize("form", [pytest.param("program", marks=pytest.mark.slow), "onnx"])
def test_the_example_classifies_an_image_file_without_this_package(exported: Exported, form: str, tmp_path: Path) -> None:
    swept, folder, _ = exported
    pixels = swept.data().validation.images[:1]
    Image.fromarray(pixels[0, 0].numpy()).save(tmp_path / "digit.png")
    likeliest = torch.softmax(swept.logits(pixels), dim=1).max(dim=1)
    options = ["--onnx"] if form == "onnx" else []
    done = subprocess.run(
        [sys.executable, str(folder / "example.py"), *options, "digit.png"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == f"digit.png: {int(likeliest.indices)} ({float(likeliest.values):.3f})\n"
    assert "stillhouse" not in "".join(re.findall(r"^(?:import|from) .*", (folder / "example.py").read_text(), re.MULTILINE))


def test_on_request_there_is_a_file_for_raw_images_and_all_files_name_trial_classes_and_licence(
    exported: Exported, tmp_path: Path
) -> None:
    swept, _, _ = exported
    folder = tmp_path / "raw"
    for _ in range(2):
        # The second export replaces the first one with all its files.
        document = swept.export(swept.record().trial.key, folder, with_preprocessing=True, licence="CC BY 4.0")
    images = swept.data().test.images[:4]
    session = onnxruntime.InferenceSession(folder / "student.raw.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.permute(0, 2, 3, 1).contiguous().numpy()})[0]
    assert np.abs(found - swept.logits(images).numpy()).max() < 1e-3
    assert document["agreement"]["raw"]["largest_difference"] < 1e-3
    extra = {"metadata.json": ""}
    torch.export.load(folder / "student.pt2", extra_files=extra)
    models = [onnx.load(folder / name) for name in ("student.onnx", "student.raw.onnx")]
    metadata = [
        json.loads(extra["metadata.json"]),
        *({each.key: each.value for each in model.metadata_props} for model in models),
    ]
    for facts in metadata:
        assert (facts["trial"], facts["licence"]) == (swept.record().trial.key, "CC BY 4.0")
        assert json.loads(facts["classes"]) == [str(digit) for digit in range(10)]
        assert json.loads(facts["mean"]) == list(swept.data().mean)
    card = (folder / "README.md").read_text()
    assert numbers_of(card)["licence"] == "CC BY 4.0"
    assert "`student.raw.onnx` takes raw images, uint8 [batch, height, width, 1]" in card
    assert "they must have the size 8x8" in card


def test_the_load_of_the_machine_stands_beside_the_latencies(exported: Exported) -> None:
    _, folder, document = exported
    load = document["measured_on"]
    assert load["cores"] == os.cpu_count()
    assert 1 <= load["rounds"] <= 3
    assert (folder / "README.md").read_text().count(f"The load average before it was {load['load_average']:.2f}.") == 1
