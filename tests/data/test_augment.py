import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as reference
from scipy.stats import beta, chisquare, kstest
from torch import Tensor

from stillhouse.data.augment import (
    ColourJitter,
    Crop,
    Cutmix,
    Cutout,
    Draws,
    Flip,
    Mixup,
    Operation,
    RandomResizedCrop,
    beta_quantiles,
)

DRAWS = Draws(("test",), 20_000)


def random_images(batch: int = 6, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    return torch.randint(
        0, 256, (batch, channels, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def image(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)[None, None]


def values(**parameters: int | list[int]) -> dict[str, Tensor]:
    return {name: torch.tensor([value] if isinstance(value, int) else value) for name, value in parameters.items()}


@pytest.mark.parametrize(("side", "padding"), [(8, 1), (28, 3), (32, 4), (96, 12)])
def test_crop_pads_an_eighth_of_the_image_by_default(side: int, padding: int) -> None:
    assert Crop().options((3, side, side))["padding"] == padding


def test_a_crop_at_0_0_moves_the_image_down_and_right_into_black() -> None:
    cropped = Crop(padding=1).apply(image([1, 2, 3], [4, 5, 6], [7, 8, 9]), values(top=0, left=0))
    assert cropped[0, 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]


def test_a_crop_at_the_far_end_moves_the_image_up_and_left() -> None:
    cropped = Crop(padding=1).apply(image([1, 2, 3], [4, 5, 6], [7, 8, 9]), values(top=2, left=2))
    assert cropped[0, 0].tolist() == [[5, 6, 0], [8, 9, 0], [0, 0, 0]]


def test_a_reflecting_crop_mirrors_at_the_border_without_repeating_it() -> None:
    cropped = Crop(padding=2, mode="reflect").apply(image([1, 2, 3], [4, 5, 6], [7, 8, 9]), values(top=0, left=2))
    assert cropped[0, 0].tolist() == [[7, 8, 9], [4, 5, 6], [1, 2, 3]]


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_a_crop_is_a_window_of_the_padded_image(mode: str) -> None:
    images, top, left = random_images(), [0, 6, 3, 2, 1, 4], [6, 0, 3, 5, 1, 4]
    edges = ((0, 0), (0, 0), (3, 3), (3, 3))
    padded = np.pad(images.numpy(), edges, mode="reflect") if mode == "reflect" else np.pad(images.numpy(), edges)
    expected = [padded[place, :, top[place] : top[place] + 9, left[place] : left[place] + 7] for place in range(6)]
    assert np.array_equal(Crop(padding=3, mode=mode).apply(images, values(top=top, left=left)).numpy(), expected)


def test_all_offsets_of_a_crop_are_equally_likely() -> None:
    offsets = Crop(padding=2).draw(DRAWS, (1, 8, 8))
    counts = np.bincount(offsets["top"] * 5 + offsets["left"], minlength=25)
    assert len(counts) == 25
    assert chisquare(counts).pvalue > 0.001


def test_a_flip_mirrors_the_samples_that_are_drawn() -> None:
    images = image([1, 2], [3, 4]).repeat(2, 1, 1, 1)
    flipped = Flip().apply(images, values(flipped=[1, 0]))
    assert flipped[:, 0].tolist() == [[[2, 1], [4, 3]], [[1, 2], [3, 4]]]


def test_a_flip_flipped_again_is_the_image() -> None:
    images, parameters = random_images(), values(flipped=[1, 0, 1, 1, 0, 1])
    assert torch.equal(Flip().apply(Flip().apply(images, parameters), parameters), images)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_a_flip_has_its_probability(probability: float) -> None:
    flipped = Flip(probability=probability).draw(DRAWS, (1, 8, 8))["flipped"]
    assert flipped.mean() == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 20_000) ** 0.5)


def test_a_cutout_paints_its_square_and_is_clipped_at_the_border() -> None:
    ones = torch.ones(2, 1, 3, 4, dtype=torch.uint8)
    painted = Cutout(size=2, fill=9).apply(ones, values(top=[1, -1], left=[1, 3]))
    assert painted[:, 0].tolist() == [[[1, 1, 1, 1], [1, 9, 9, 1], [1, 9, 9, 1]], [[1, 1, 1, 9], [1, 1, 1, 1], [1, 1, 1, 1]]]


@pytest.mark.parametrize(("side", "size"), [(32, 8), (224, 8), (9, 8), (8, 2), (4, 1), (2, 1)])
def test_the_default_size_of_a_cutout_fits_the_image(side: int, size: int) -> None:
    shape = (3, side, side + 5)
    assert Cutout().misfits(shape) == []
    assert Cutout().options(shape) == Cutout(size=size).options(shape)
    images = torch.full((50, *shape), 9, dtype=torch.uint8)
    drawn = {name: torch.from_numpy(values) for name, values in Cutout().draw(Draws(("a",), 50), shape).items()}
    assert (Cutout().apply(images, drawn) == 0)[:, 0].sum((1, 2)).max() == size * size


def test_the_centre_of_a_cutout_may_be_any_pixel() -> None:
    square = Cutout(size=4).draw(DRAWS, (1, 6, 10))
    assert set(square["top"] + 2) == set(range(6))
    assert set(square["left"] + 2) == set(range(10))


def test_colour_factors_of_one_change_nothing() -> None:
    images = random_images()
    assert torch.equal(
        ColourJitter().apply(images, values(brightness=[64] * 6, contrast=[64] * 6, saturation=[64] * 6)), images
    )


def test_brightness_scales_and_saturates() -> None:
    assert ColourJitter().apply(image([0, 100, 200]), values(brightness=96)).tolist() == [[[[0, 150, 255]]]]


def test_no_contrast_is_the_mean_grey_and_no_saturation_is_grey() -> None:
    assert ColourJitter().apply(image([10, 20, 60]), values(contrast=0)).tolist() == [[[[30, 30, 30]]]]
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert ColourJitter().apply(red, values(saturation=0)).flatten().tolist() == [76, 76, 76]  # 0.299 * 255 = 76.2


@pytest.mark.parametrize("factor", [40, 64, 90, 128])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_changes_agree_with_torchvisions_within_rounding(name: str, factor: int) -> None:
    images = random_images()
    adjust = {
        "brightness": reference.adjust_brightness,
        "contrast": reference.adjust_contrast,
        "saturation": reference.adjust_saturation,
    }[name]
    difference = ColourJitter().apply(images, values(**{name: [factor] * 6})).int() - adjust(images, factor / 64).int()
    assert difference.abs().max() <= 3  # torchvision truncates twice, and a grey level counts up to factor - 1 times


def test_grey_images_have_no_saturation_to_change() -> None:
    assert set(ColourJitter().draw(DRAWS, (1, 8, 8))) == {"brightness", "contrast"}


def test_colour_factors_stay_in_their_range() -> None:
    factors = ColourJitter(brightness=0.25, contrast=0.0).draw(DRAWS, (3, 8, 8))
    assert "contrast" not in factors
    assert (factors["brightness"].min(), factors["brightness"].max()) == (48, 80)


def test_resizing_the_whole_image_changes_nothing() -> None:
    images = random_images()
    whole = values(top=[0] * 6, left=[0] * 6, rows=[9] * 6, columns=[7] * 6)
    assert torch.equal(RandomResizedCrop().apply(images, whole), images)


@pytest.mark.parametrize("window", [(0, 0, 5, 4), (3, 2, 6, 5), (8, 6, 1, 1), (1, 0, 2, 7)])
def test_a_resized_crop_is_bilinear_interpolation_within_rounding(window: tuple[int, int, int, int]) -> None:
    images = random_images()
    top, left, rows, columns = window
    cut = images[:, :, top : top + rows, left : left + columns]
    expected = F.interpolate(cut.double(), (9, 7), mode="bilinear", align_corners=False)
    parameters = {name: [value] * 6 for name, value in zip(("top", "left", "rows", "columns"), window, strict=True)}
    difference = RandomResizedCrop().apply(images, values(**parameters)).double() - expected
    assert difference.abs().max() <= 4.5  # 255/128 in either direction from the place, half a level from each rounding


def test_windows_of_resized_crops_are_inside_the_image_and_have_the_requested_shapes() -> None:
    window = RandomResizedCrop(scale=(0.25, 0.5), ratio=(0.8, 1.25)).draw(DRAWS, (3, 64, 64))
    assert (window["top"].min(), window["left"].min()) == (0, 0)
    assert (window["top"] + window["rows"]).max() == (window["left"] + window["columns"]).max() == 64
    area = window["rows"] * window["columns"] / 64**2
    assert area.min() == pytest.approx(0.25, abs=0.02)
    assert area.max() == pytest.approx(0.5, abs=0.02)
    assert kstest((area - 0.25) * 4, "uniform").statistic < 0.05
    ratio = window["columns"] / window["rows"]
    assert (ratio.min(), ratio.max()) == pytest.approx((0.8, 1.25), abs=0.04)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.005)


def test_mixup_averages_in_256ths() -> None:
    black, white = image([0, 0]), image([255, 100])
    assert Mixup().mix(black, white, values(weight=64)).tolist() == [[[[191, 75]]]]  # 255 * 3/4 = 191.25


@pytest.mark.parametrize(("weight", "expected"), [(256, [[[[3, 250]]]]), (0, [[[[255, 0]]]])])
def test_mixup_with_an_extreme_weight_is_one_of_the_two_images(weight: int, expected: list[list[list[list[int]]]]) -> None:
    assert Mixup().mix(image([3, 250]), image([255, 0]), values(weight=weight)).tolist() == expected


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixing_weights_follow_the_beta_distribution(alpha: float) -> None:
    weights = Mixup(alpha=alpha).draw(DRAWS, (1, 8, 8))["weight"] / 256
    assert weights.mean() == pytest.approx(0.5, abs=4 * beta.std(alpha, alpha) / 20_000**0.5)
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_quantiles_of_the_flat_beta_distribution_are_evenly_spaced() -> None:
    assert np.bincount(beta_quantiles(1.0))[1:-1].tolist() == [16] * 255


def test_mixing_partners_are_a_permutation() -> None:
    for operation in (Mixup(), Cutmix()):
        assert np.array_equal(np.sort(operation.draw(DRAWS, (1, 8, 8))["partner"]), np.arange(20_000))


def test_cutmix_takes_the_rectangle_from_the_partner_and_shares_the_label_by_area() -> None:
    parameters = values(top=0, bottom=2, left=1, right=3)
    mixed = Cutmix().mix(torch.zeros(1, 1, 3, 4, dtype=torch.uint8), torch.full((1, 1, 3, 4), 7, dtype=torch.uint8), parameters)
    assert mixed[0, 0].tolist() == [[0, 7, 7, 0], [0, 7, 7, 0], [0, 0, 0, 0]]
    assert Cutmix().share(parameters, (1, 3, 4)).item() == pytest.approx(1 - 4 / 12, abs=1e-7)


def test_a_label_share_of_cutmix_is_the_share_of_pixels_that_stay() -> None:
    shape = (1, 12, 9)
    drawn = Cutmix().draw(Draws(("areas",), 5000), shape)
    parameters = {name: torch.from_numpy(array) for name, array in drawn.items()}
    own, other = torch.ones(5000, *shape, dtype=torch.uint8), torch.zeros(5000, *shape, dtype=torch.uint8)
    kept = Cutmix().mix(own, other, parameters).double().mean((1, 2, 3))
    assert torch.allclose(Cutmix().share(parameters, shape).double(), kept, atol=1e-6)
    assert kept.min() < 0.2
    assert kept.max() == 1


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Crop(padding=0), "crop.padding must be a whole number >= 1, got 0"),
        (Crop(mode="wrap"), "crop.mode must be 'zero' or 'reflect', got 'wrap'"),
        (Flip(probability=1.5), "flip.probability must be in [0, 1], got 1.5"),
        (Cutout(fill=256), "cutout.fill must be a whole number in 0..255, got 256"),
        (ColourJitter(contrast=-0.1), "colour_jitter.contrast must be in [0, 1], got -0.1"),
        (RandomResizedCrop(scale=(0.5, 0.2)), "scale must be [low, high] with 0 < low <= high <= 1, got (0.5, 0.2)"),
        (Mixup(alpha=0.0), "mixup.alpha must be > 0, got 0.0"),
        (Cutmix(alpha=float("nan")), "cutmix.alpha must be > 0, got nan"),
    ],
    ids=lambda value: value.name if isinstance(value, Operation) else "",
)
def test_an_option_out_of_its_range_is_reported_with_rule_and_value(operation: Operation, message: str) -> None:
    (problem,) = operation.problems()
    assert str(problem).endswith(message)
