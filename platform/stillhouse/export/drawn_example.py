"""Runs the exported generator: python example.py [--onnx] [--count N] [--seed N] FILE.png.

Draws noise, and writes the images that the generator makes of it, side by side. Needs numpy, pillow, and torch or onnxruntime;
nothing of the project that trained the generator.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).resolve().parent
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def draw(count: int, seed: int, facts: dict[str, Any]) -> NDArray[np.float32]:
    """Inputs [count, numbers]: normal noise and, for a generator of given classes, 1 for the class of each, in turn."""
    sizes = facts["input"]["drawn"]
    noise = np.random.default_rng(seed).standard_normal((count, sizes["noise"])).astype(np.float32)
    classes = np.eye(max(1, sizes["classes"]), sizes["classes"], dtype=np.float32)
    return np.concatenate([noise, classes[np.arange(count) % len(classes)]], axis=1)


def run_program(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The images, by torch."""
    import torch

    program = torch.export.load(FOLDER / "student.pt2").module()
    with torch.no_grad():
        images: NDArray[np.float32] = program(torch.from_numpy(inputs)).numpy()
    return images


def run_onnx(inputs: NDArray[np.float32], facts: dict[str, Any]) -> NDArray[np.float32]:
    """The images, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(FOLDER / "student.onnx", providers=["CPUExecutionProvider"])
    images: NDArray[np.float32] = session.run(None, {facts["input"]["name"]: inputs})[0]
    return images


def side_by_side(images: NDArray[np.float32], facts: dict[str, Any]) -> Image.Image:
    """Images [N, C, H, W] in the range of the generator, as one picture."""
    low, high = facts["range"]
    pixels = np.clip(np.round(255 * (images - low) / (high - low)), 0, 255).astype(np.uint8)
    row = np.concatenate(list(pixels), axis=2).transpose(1, 2, 0)
    return Image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row, MODES[row.shape[2]])


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description="Run the exported generator on noise.")
    parser.add_argument("file", metavar="FILE.png")
    parser.add_argument("--count", type=int, default=10, help="how many images")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--onnx", action="store_true", help="run student.onnx instead of student.pt2")
    arguments = parser.parse_args()
    facts = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))
    inputs = draw(arguments.count, arguments.seed, facts)
    images = run_onnx(inputs, facts) if arguments.onnx else run_program(inputs)
    side_by_side(images, facts).save(arguments.file)
    print(f"{arguments.file}: {len(images)} images")


if __name__ == "__main__":
    main()
