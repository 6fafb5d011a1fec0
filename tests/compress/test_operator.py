"""The operator contract: rules of options, the readable form, seeded draws."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from stillhouse.compress.operator import Context, Level, Operator, option


@dataclass(frozen=True, kw_only=True)
class Shrink(Operator):
    ratio: float = option(0.5, minimum=0, below=1)
    kind: str = option("l1", choices=("l1", "l2"))
    per_layer: bool = option(False)


class ShrinkWithRatio(Shrink):
    main_options = ("ratio",)


def test_an_option_that_breaks_its_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ratio must be < 1, got 1\.5"):
        Shrink(ratio=1.5)


@pytest.mark.parametrize(
    ("operator", "readable"),
    [
        (Shrink(), f"{Shrink.__module__}:Shrink()"),
        (Shrink(ratio=0.25), f"{Shrink.__module__}:Shrink(ratio=0.25)"),
        (ShrinkWithRatio(kind="l2"), f"{Shrink.__module__}:ShrinkWithRatio(ratio=0.5, kind=l2)"),
        (Shrink(kind="l2", per_layer=True), f"{Shrink.__module__}:Shrink(kind=l2, per_layer=true)"),
    ],
)
def test_the_readable_form_has_main_and_changed_options(operator: Operator, readable: str) -> None:
    assert operator.readable == readable


def test_the_base_class_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    converted = Operator().convert(model, Context(num_classes=2, input_shape=(1, 1, 2)))
    assert converted.model is model
    assert not converted.history
    state = model.state_dict()
    assert Operator().pack(model, state, {}) is state


def test_draws_depend_on_the_seed_alone() -> None:
    draws = [torch.rand(3, generator=Context(num_classes=2, input_shape=(1, 8, 8), seed=seed).generator) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_example_has_the_dtype_and_device_of_the_model() -> None:
    context = Context(num_classes=2, input_shape=(3, 8, 8))
    assert context.example(nn.Linear(2, 2, device="meta", dtype=torch.float64), 5).shape == (5, 3, 8, 8)
    assert context.example(nn.Linear(2, 2, device="meta")).is_meta


def test_levels_are_ordered_and_have_names() -> None:
    assert Level.ARCHITECTURE < Level.ZEROS < Level.VALUES < Level.PRECISION
    assert [str(level) for level in Level] == ["the layers", "which weights are zero", "the values of weights", "the precision"]
