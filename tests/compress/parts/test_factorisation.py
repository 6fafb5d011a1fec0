"""Low-rank factors against tensorly, the theorem of Eckart and Young, and the original layer at full rank."""

from typing import Any, get_args

import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor, nn

from stillhouse.compress.parts import factorisation as lr
from stillhouse.compress.parts.factorisation import Form

FORMS: tuple[Form, ...] = get_args(Form)


@pytest.fixture(autouse=True)
def _torch_backend() -> Any:
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        yield


def kernel(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolution(num_inputs: int, num_outputs: int, size: Any, **options: Any) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(num_inputs, num_outputs, size, **options).double()


CONVOLUTIONS = {
    "3x3": convolution(5, 7, 3, padding=1),
    "stride": convolution(4, 6, 3, padding=1, stride=2, bias=False),
    "oblong": convolution(3, 4, (5, 2), padding=(2, 1), stride=(1, 2), dilation=(1, 2)),
    "reflect": convolution(4, 4, 3, padding=1, padding_mode="reflect"),
    "same": convolution(4, 8, (5, 3), padding="same"),
    "1x1": convolution(6, 3, 1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_full_rank_computes_what_the_original_computes(name: str, form: Form) -> None:
    layer, images = CONVOLUTIONS[name], kernel(2, CONVOLUTIONS[name].in_channels, 9, 11)
    factored = lr.factored_convolution(layer, form, lr.full_ranks(tuple(layer.weight.shape), form))
    torch.testing.assert_close(factored(images), layer(images), rtol=1e-9, atol=1e-9)


def test_a_linear_layer_of_full_rank_computes_what_the_original_computes() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 4).double()
    torch.testing.assert_close(lr.factored_linear(layer, 4)(kernel(3, 7)), layer(kernel(3, 7)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["channel", "spatial"])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_error_of_rank_r_is_that_of_the_singular_values_left_out(form: Form, rank: int) -> None:
    weight = kernel(6, 5, 3, 3)
    matrix = lr.as_matrix(weight, form)
    outer, inner = lr.svd_factors(matrix, rank)
    # Eckart and Young (1936): the best error of rank R is the root of the remaining sum of sigma^2.
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close((matrix - outer @ inner).norm(), values[rank:].norm(), rtol=1e-9, atol=1e-9)


def test_truncated_factors_are_tensorlys() -> None:
    matrix = kernel(8, 12)
    left, values, right = tensorly.truncated_svd(matrix, n_eigenvecs=4)
    outer, inner = lr.svd_factors(matrix, 4)
    torch.testing.assert_close(outer @ inner, (left * values) @ right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("inner", "outer"), [(2, 3), (4, 4), (5, 8), (1, 1)])
def test_tucker_factors_approximate_as_well_as_tensorlys(inner: int, outer: int) -> None:
    weight = kernel(8, 5, 3, 3)
    (core, factors), _ = partial_tucker(weight, rank=[outer, inner], modes=[0, 1], n_iter_max=100, tol=1e-12)
    theirs = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    first, kernel_core, second = lr.tucker2_factors(weight, inner, outer)
    ours = torch.einsum("oq,qrhw,ir->oihw", second, kernel_core, first)
    # The problem has local optima: ours may be the better one. No ranks do better than either unfolding alone.
    assert float((weight - ours).norm()) <= float((weight - theirs).norm()) * (1 + 1e-5) + 1e-9
    tails = [torch.linalg.svdvals(one)[rank:].norm() for one, rank in zip(lr.unfoldings(weight), (inner, outer), strict=True)]
    assert float((weight - ours).norm()) >= max(map(float, tails)) - 1e-9
    torch.testing.assert_close(first.T @ first, torch.eye(inner, dtype=torch.float64))
    torch.testing.assert_close(second.T @ second, torch.eye(outer, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_a_factored_convolution_computes_with_the_approximated_kernel(form: Form) -> None:
    layer, images = CONVOLUTIONS["stride"], kernel(2, 4, 9, 9)
    ranks = lr.ranks_by_ratio(tuple(layer.weight.shape), form, 0.5).ranks
    approximated = convolution(4, 6, 3, padding=1, stride=2, bias=False)
    with torch.no_grad():
        if form == "tucker2":
            first, core, second = lr.tucker2_factors(layer.weight, *ranks)
            approximated.weight.copy_(torch.einsum("oq,qrhw,ir->oihw", second, core, first))
        else:
            outer, inner = lr.svd_factors(lr.as_matrix(layer.weight, form), ranks[0])
            product = outer @ inner
            if form == "spatial":
                approximated.weight.copy_(product.reshape(4, 3, 6, 3).permute(2, 0, 1, 3))
            else:
                approximated.weight.copy_(product.reshape(6, 4, 3, 3))
    torch.testing.assert_close(lr.factored_convolution(layer, form, ranks)(images), approximated(images))


@pytest.mark.parametrize(
    ("energy", "rank"),
    # sigma^2 of diag(4, 3, 2, 1) is 16, 9, 4, 1 of 30: cumulated shares 0.533, 0.833, 0.967, 1.
    [(0.5, 1), (16 / 30, 1), (0.54, 2), (25 / 30, 2), (0.84, 3), (0.97, 4), (1.0, 4)],
)
def test_the_rank_is_the_smallest_that_has_the_energy(energy: float, rank: int) -> None:
    weight = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    assert lr.ranks_by_energy(weight, "channel", energy).ranks == (rank,)
    assert lr.ranks_by_energy(torch.nn.functional.pad(weight, (0, 3))[:, :, None, None], "spatial", energy).ranks == (rank,)


def test_a_weight_of_zeros_has_rank_one() -> None:
    assert lr.ranks_by_energy(torch.zeros(3, 4), "channel", 0.9).ranks == (1,)


def test_a_rank_deficient_weight_needs_its_own_rank_only() -> None:
    weight = kernel(8, 2) @ kernel(2, 9, seed=1)
    assert lr.ranks_by_energy(weight, "channel", 0.999999).ranks == (2,)


@pytest.mark.parametrize(
    ("shape", "form", "ratio", "ranks"),
    [
        ((10, 30), "channel", 0.5, (5,)),
        ((16, 8, 3, 3), "channel", 0.25, (4,)),
        ((16, 8, 3, 3), "spatial", 0.25, (6,)),  # the full rank is min(8 * 3, 16 * 3) = 24
        ((16, 8, 3, 3), "tucker2", 0.5, (4, 8)),
        ((16, 8, 3, 3), "channel", 0.001, (1,)),
        # A 1x1 core of 1 output channel has one row: the second input rank could add only zeros.
        ((2, 8, 1, 1), "tucker2", 0.5, (1, 1)),
    ],
)
def test_ranks_by_ratio_are_a_share_of_the_full_ranks(
    shape: tuple[int, ...], form: Form, ratio: float, ranks: tuple[int, ...]
) -> None:
    assert lr.ranks_by_ratio(shape, form, ratio).ranks == ranks


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_counted_weights_are_those_of_the_layers(name: str, form: Form) -> None:
    layer = CONVOLUTIONS[name]
    shape = tuple(layer.weight.shape)
    ranks = lr.ranks_by_ratio(shape, form, 0.4).ranks
    factored = lr.factored_convolution(layer, form, ranks)
    weights = sum(part.weight.numel() for part in factored if isinstance(part, nn.Conv2d))
    assert weights == lr.factor_sizes(shape, form, ranks)
    assert lr.saved_weights(shape, form, ranks) == max(0, layer.weight.numel() - weights)


@pytest.mark.parametrize("form", FORMS)
def test_factors_on_the_meta_device_have_the_shapes_of_the_computed_ones(form: Form) -> None:
    layer = CONVOLUTIONS["oblong"]
    ranks = lr.ranks_by_ratio(tuple(layer.weight.shape), form, 0.5).ranks
    real = lr.factored_convolution(layer, form, ranks)
    with torch.device("meta"):
        sketch = nn.Conv2d(3, 4, (5, 2), padding=(2, 1), stride=(1, 2), dilation=(1, 2), dtype=torch.float64)
    meta = lr.factored_convolution(sketch, form, ranks)
    shapes = {name: (value.shape, value.dtype) for name, value in real.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in meta.state_dict().items()} == shapes
    assert all(value.is_meta for value in meta.state_dict().values())


def test_the_signs_of_the_factors_do_not_depend_on_the_decomposition() -> None:
    matrix = kernel(5, 7)
    outer, inner = lr.svd_factors(matrix, 3)
    assert all(row[row.abs().argmax()] > 0 for row in inner)
    torch.testing.assert_close(outer @ inner, lr.svd_factors(-matrix, 3)[0] @ -lr.svd_factors(-matrix, 3)[1])
