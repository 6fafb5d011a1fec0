"""Classifies image files with the exported student: python example.py [--onnx] IMAGE [IMAGE ...].

Needs numpy, pillow, and torch or onnxruntime; nothing of the project that trained the student.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def prepare(path: str, facts: dict[str, Any]) -> NDArray[np.float32]:
    """The image [C, H, W] as the student takes it."""
    channels, height, width = facts["input_shape"]
    image = Image.open(path).convert(MODES[channels])
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).reshape(height, width, channels).transpose(2, 0, 1)
    mean, std = (np.array([255.0 * value for value in facts[key]], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    prepared: NDArray[np.float32] = (pixels - mean) / std
    return prepared


def run_program(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits, by torch."""
    import torch

    program = torch.export.load(FOLDER / "student.pt2").module()
    with torch.no_grad():
        logits: NDArray[np.float32] = program(torch.from_numpy(images)).numpy()
    return logits


def run_onnx(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(FOLDER / "student.onnx", providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
    return logits


def main() -> None:
    """Prints the likeliest class of each image and its probability."""
    parser = argparse.ArgumentParser(description="Classify images with the exported student.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--onnx", action="store_true", help="run student.onnx instead of student.pt2")
    arguments = parser.parse_args()
    facts = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))
    images = np.stack([prepare(path, facts) for path in arguments.images])
    logits = run_onnx(images) if arguments.onnx else run_program(images)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    for path, share in zip(arguments.images, odds / odds.sum(axis=1, keepdims=True), strict=True):
        print(f"{path}: {facts['class_names'][share.argmax()]} ({share.max():.3f})")


if __name__ == "__main__":
    main()
