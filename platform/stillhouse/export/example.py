"""Runs the exported student on image files: python example.py [--onnx] IMAGE [IMAGE ...].

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
SURE = 0.3  # detections of a lower score are not printed
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def prepare(path: str, facts: dict[str, Any]) -> NDArray[np.float32]:
    """The image [C, H, W] as the student takes it: upright, on the ground if it is transparent, of the student's size."""
    channels, height, width = facts["input_shape"]
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data and facts["ground"] is not None:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (*facts["ground"], 255)), layer)
    planes = image.convert(MODES[channels]).split()
    if image.size != (width, height):
        # Plane by plane, since Pillow weights colours by the alpha channel when it resizes all of them at once.
        planes = tuple(resize(plane, (width, height), facts.get("fit", "crop")) for plane in planes)
    pixels = np.stack([np.asarray(plane, np.float32) for plane in planes])
    mean, std = (np.array([255.0 * value for value in facts[key]], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    prepared: NDArray[np.float32] = (pixels - mean) / std
    return prepared


def resize(plane: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """One channel of an image in the student's width and height."""
    if fit == "crop":
        return ImageOps.fit(plane, size, Image.Resampling.BILINEAR)
    if fit == "stretch":
        return plane.resize(size, Image.Resampling.BILINEAR)
    scale = min(size[0] / plane.width, size[1] / plane.height)
    framed = Image.new("L", size)
    inner = (max(1, round(plane.width * scale)), max(1, round(plane.height * scale)))
    framed.paste(plane.resize(inner, Image.Resampling.BILINEAR))
    return framed


def run_program(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The outputs, by torch."""
    import torch

    program = torch.export.load(FOLDER / "student.pt2").module()
    with torch.no_grad():
        outputs: NDArray[np.float32] = program(torch.from_numpy(images)).numpy()
    return outputs


def run_onnx(images: NDArray[np.float32], name: str = "student.onnx") -> NDArray[np.float32]:
    """The outputs of an ONNX file of this folder, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(FOLDER / name, providers=["CPUExecutionProvider"])
    outputs: NDArray[np.float32] = session.run(None, {"images": images})[0]
    return outputs


def describe(outputs: NDArray[np.float32], facts: dict[str, Any]) -> str:
    """The likeliest class and its probability, if the outputs [K] of one image are logits; boxes; otherwise the numbers.

    Boxes are (x1, y1, x2, y2) in pixels of the resized image.
    """
    if facts["output"]["what"] == "detections":
        found = [row for row in outputs if row[4] >= SURE]
        places = ("{:.0f} {:.0f} {:.0f} {:.0f}".format(*row[:4]) for row in found)
        names = (f"{facts['class_names'][int(row[5])]} ({row[4]:.3f}) at" for row in found)
        return "; ".join(map(" ".join, zip(names, places, strict=True))) or "nothing"
    if facts["output"]["what"] != "logits":
        return " ".join(f"{value:.6g}" for value in outputs)
    odds = np.exp(outputs - outputs.max())
    return f"{facts['class_names'][odds.argmax()]} ({odds.max() / odds.sum():.3f})"


def main() -> None:
    """Prints what the student returns for each image."""
    parser = argparse.ArgumentParser(description="Run the exported student on images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--onnx", action="store_true", help="run student.onnx instead of student.pt2")
    parser.add_argument("--int8", action="store_true", help="run student.int8.onnx, which only a student of 8 bits has")
    arguments = parser.parse_args()
    facts = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))
    images = np.stack([prepare(path, facts) for path in arguments.images])
    if arguments.int8:
        outputs = run_onnx(images, "student.int8.onnx")
    else:
        outputs = run_onnx(images) if arguments.onnx else run_program(images)
    for path, row in zip(arguments.images, outputs, strict=True):
        print(f"{path}: {describe(row, facts)}")


if __name__ == "__main__":
    main()
