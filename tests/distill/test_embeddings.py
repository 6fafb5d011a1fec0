"""Vectors of unit length. Methods on embeddings: tests/methods/test_relational.py and others."""

import pytest
import torch

from stillhouse.distill.embeddings import unit_rows


def test_rows_are_divided_by_their_lengths() -> None:
    torch.testing.assert_close(unit_rows(torch.tensor([[3.0, 4.0], [0.0, 2.0]])), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_epsilon_is_added_to_the_length() -> None:
    torch.testing.assert_close(unit_rows(torch.tensor([[3.0, 4.0]]), epsilon=5.0), torch.tensor([[0.3, 0.4]]))


def test_a_row_of_zeros_stays_zero_with_a_zero_gradient() -> None:
    vectors = torch.zeros(1, 3, requires_grad=True)
    torch.autograd.backward(unit_rows(vectors).sum())
    assert vectors.grad is not None
    assert not unit_rows(vectors).any()
    assert not vectors.grad.any()


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_rows, (vectors,))


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_length_of_a_row_does_not_matter(factor: float) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(4, 8)
    torch.testing.assert_close(unit_rows(factor * vectors), unit_rows(vectors))
