"""A student of texts leaves as a program and as ONNX for texts of any length, with its tokenizer and a script that runs it."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")

from stillhouse.data.datasets import ImageData
from stillhouse.export import export as exporting
from stillhouse.export import onnx, program, text_example
from stillhouse.export.export import preprocessing
from stillhouse.models.registry import build_model, with_data_options
from stillhouse.models.text_layers import TextModel
from stillhouse.testing.grounds.text_classification import texts


def built(name: str) -> TextModel:
    torch.manual_seed(0)
    data = texts()
    options = with_data_options(name, {"width": 0.25}, data.model_options)
    model = build_model(name, num_classes=2, input_shape=data.input_shape, **options).eval()
    assert isinstance(model, TextModel)
    return model


def ids(count: int, length: int) -> torch.Tensor:
    drawn = torch.randint(1, 300, (count, length), generator=torch.Generator().manual_seed(count))
    drawn[0, length // 2 :] = 0
    return drawn


@pytest.mark.parametrize(("name", "lengths"), [("text_cnn", (1, 3, 16)), ("text_transformer", (1, 3, 16)), ("bilstm", (16,))])
def test_program_and_onnx_answer_as_the_model_at_every_length(name: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    model, shape = built(name), (16,)
    if name == "text_transformer":
        model = build_model(name, num_classes=2, input_shape=shape, width=0.25, vocabulary=400).eval()  # type: ignore[assignment]
    traced = program.make_program(model, shape)
    onnx.save_onnx(traced, tmp_path / "student.onnx", "logits", "ids")
    onnx.check_onnx(tmp_path / "student.onnx")
    answers = (traced.module(), onnx.load_answer(tmp_path / "student.onnx"))
    for length in lengths:
        given = ids(3, length)
        for answer in answers:
            torch.testing.assert_close(answer(given), model(given), atol=1e-5, rtol=1e-4)


@dataclass
class Exported:
    """A folder as an export fills it, of a model that was not trained."""

    folder: Path
    model: TextModel
    data: ImageData


@pytest.fixture(params=["text_cnn", "bilstm"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Exported:
    model, data = built(request.param), texts()
    traced = program.make_program(model, data.input_shape)
    program.save_program(traced, tmp_path / exporting.PROGRAM)
    onnx.save_onnx(traced, tmp_path / exporting.ONNX, "logits", "ids")
    facts = preprocessing(data, resized=False, any_length=model.any_length)
    (tmp_path / exporting.PREPROCESSING).write_text(json.dumps(facts), encoding="utf-8")
    for name, content in data.files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    shutil.copy(str(text_example.__file__), tmp_path / exporting.EXAMPLE)
    return Exported(tmp_path, model, data)


def test_the_script_turns_texts_into_the_ids_of_the_data_set_and_names_their_classes(exported: Exported) -> None:
    data, given = exported.data, ["stone lovely cloud river 4", "awful music"]
    outputs = []
    for flags in ([], ["--onnx"]):
        run = subprocess.run(
            [sys.executable, "example.py", *flags, *given], cwd=exported.folder, capture_output=True, text=True, check=True
        )
        outputs.append(run.stdout.splitlines())
    assert outputs[0] == outputs[1]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(data.files["tokenizer.json"])
    for text, line in zip(given, outputs[0], strict=True):
        encoded = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            chances = exported.model(encoded)[0].softmax(0)
        best = int(chances.argmax())
        assert line == f"{text}: {data.class_names[best]} ({float(chances[best]):.3f})"


def test_ids_are_those_of_the_data_set(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_example, "FOLDER", exported.folder)
    facts: dict[str, Any] = json.loads((exported.folder / exporting.PREPROCESSING).read_text(encoding="utf-8"))
    from tokenizers import Tokenizer

    rows = exported.data.validation.images[:5].numpy()
    tokenizer = Tokenizer.from_str(exported.data.files["tokenizer.json"])
    words = [tokenizer.decode([number for number in row if number]) for row in rows.tolist()]
    prepared = text_example.prepare([each.strip() for each in words], facts)
    assert np.array_equal(prepared, rows[:, : prepared.shape[1]])
    assert not rows[:, prepared.shape[1] :].any()
    assert facts["input"]["shape"] == ["batch", "length" if exported.model.any_length else exported.data.input_shape[0]]
