"""Runs the exported student on texts: python example.py [--onnx] TEXT [TEXT ...].

Needs numpy, tokenizers, and torch or onnxruntime; nothing of the project that trained the student.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent


def prepare(texts: Sequence[str], facts: dict[str, Any]) -> NDArray[np.int64]:
    """Token ids [texts, length] as the student takes them: 0 after the end of each text."""
    from tokenizers import Tokenizer

    length, padding = facts["input_shape"][0], facts["tokenizer_padding"]
    tokenizer = Tokenizer.from_file(str(FOLDER / facts["tokenizer"]))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    rows = np.zeros((len(texts), length), np.int64)
    for row, text in zip(rows, texts, strict=True):
        ids = np.array(tokenizer.encode(text).ids, np.int64)
        # The student has 0 for padding: where the tokenizer has another id, the two change places.
        row[: len(ids)] = np.where(ids == 0, padding, np.where(ids == padding, 0, ids))
    if facts["any_length"]:
        rows = rows[:, : max(1, int((rows != 0).sum(1).max()))]
    return rows


def run_program(ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The outputs, by torch."""
    import torch

    program = torch.export.load(FOLDER / "student.pt2").module()
    with torch.no_grad():
        outputs: NDArray[np.float32] = program(torch.from_numpy(ids)).numpy()
    return outputs


def run_onnx(ids: NDArray[np.int64], facts: dict[str, Any]) -> NDArray[np.float32]:
    """The outputs, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(FOLDER / "student.onnx", providers=["CPUExecutionProvider"])
    outputs: NDArray[np.float32] = session.run(None, {facts["input"]["name"]: ids})[0]
    return outputs


def main() -> None:
    """Prints the likeliest class of each text and its probability."""
    parser = argparse.ArgumentParser(description="Run the exported student on texts.")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--onnx", action="store_true", help="run student.onnx instead of student.pt2")
    arguments = parser.parse_args()
    facts = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))
    ids = prepare(arguments.texts, facts)
    outputs = run_onnx(ids, facts) if arguments.onnx else run_program(ids)
    for text, row in zip(arguments.texts, outputs, strict=True):
        odds = np.exp(row - row.max())
        print(f"{text}: {facts['class_names'][odds.argmax()]} ({odds.max() / odds.sum():.3f})")


if __name__ == "__main__":
    main()
