"""Students that take raw images: resized as Pillow does it, in PyTorch and by onnxruntime, at sizes that nobody exported."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.errors import UsageError
from stillhouse.export.raw_input import WithPreprocessing, fit, save_raw_onnx
from stillhouse.models.registry import build_model


def picture(height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0:height, 0:width]
    grey: NDArray[np.uint8] = (
        (128 + 70 * np.sin(rows / 5 + columns / 9) + 50 * np.cos(columns / 3)).clip(0, 255).astype(np.uint8)
    )
    return grey


@pytest.mark.parametrize("shape", [(40, 60), (50, 33), (20, 31), (224, 300), (333, 500), (32, 24), (7, 9)])
def test_images_are_fitted_as_pillow_fits_them(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    theirs = np.asarray(ImageOps.fit(Image.fromarray(image), (24, 32), Image.Resampling.BILINEAR)).astype(int)
    ours = fit(torch.from_numpy(image)[None, None].float(), (32, 24))[0, 0].numpy().astype(int)
    # A value near .5 may be rounded to the next number.
    assert np.abs(ours - theirs).max() <= 1


def test_an_image_of_the_right_size_is_not_changed() -> None:
    pixels = torch.from_numpy(picture(9, 13))[None, None].float()
    assert torch.equal(fit(pixels, (9, 13)), pixels)


def test_two_pixels_become_their_mean_by_hand() -> None:
    # Half as many: each new pixel covers two, with triangles of weights 1 : 3 : 3 : 1, cut at the border.
    row = torch.tensor([0.0, 80.0, 160.0, 240.0]).view(1, 1, 1, 4).expand(1, 1, 2, 4)
    # (0 * 3 + 80 * 3 + 160 * 1) / 7 = 57.1, and 240 less that.
    assert fit(row, (1, 2)).flatten().tolist() == [57.0, 183.0]


def test_normalisation_is_inside() -> None:
    images = torch.tensor([[0, 255]], dtype=torch.uint8).view(1, 1, 2, 1)
    found = WithPreprocessing(nn.Flatten(), [0.5], [0.25])(images)
    assert found.tolist() == [[-2.0, 2.0]]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits", options={"limit": 120}, validation=40)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("lenet", num_classes=10, input_shape=(1, 8, 8)).eval()


def answers(path: Path, images: NDArray[np.uint8]) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images})[0])


def test_the_file_takes_images_of_any_size(data: ImageData, network: nn.Module, tmp_path: Path) -> None:
    found = save_raw_onnx(network, data, tmp_path / "raw.onnx", "logits", resized=True)
    assert (found.images, found.same_class) == (80, 80)
    onnx.checker.check_model(tmp_path / "raw.onnx", full_check=True)
    image = picture(31, 17)
    fitted = np.asarray(ImageOps.fit(Image.fromarray(image), (8, 8), Image.Resampling.BILINEAR))
    with torch.no_grad():
        expected = network(data.normalise(torch.from_numpy(fitted.copy())[None, None]))
    assert torch.allclose(answers(tmp_path / "raw.onnx", image[None, :, :, None]), expected, atol=0.05)


def test_without_resizing_the_file_takes_images_of_the_students_size(
    data: ImageData, network: nn.Module, tmp_path: Path
) -> None:
    save_raw_onnx(network, data, tmp_path / "raw.onnx", "logits", resized=False)
    images = data.test.images[:3]
    with torch.no_grad():
        expected = network(data.normalise(images))
    assert torch.allclose(answers(tmp_path / "raw.onnx", images.permute(0, 2, 3, 1).contiguous().numpy()), expected, atol=1e-4)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        answers(tmp_path / "raw.onnx", np.zeros((1, 9, 8, 1), np.uint8))


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


def test_a_network_that_cannot_be_traced_is_refused(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot trace the student with its preprocessing"):
        save_raw_onnx(Branching(), data, tmp_path / "raw.onnx", "logits", resized=True)
