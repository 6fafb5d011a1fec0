"""Names of weights: mapped by regular expressions, and mappings that would fit."""

import pytest
import torch

from stillhouse.models.weight_names import RenameError, listed, renamed, suggested_rename


def weights(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((2,), float(number)) for number, name in enumerate(names)}


def test_entries_are_applied_in_their_order_and_null_leaves_weights_out() -> None:
    given = weights("linear.weight", "layer1.shortcut.0.weight", "ema.weight")
    found = renamed(given, {"^linear": "head", r"\.shortcut\.": ".downsample.", "^head": "fc", "^ema": None}, "w.pth")
    assert {name: value[0].item() for name, value in found.items()} == {"fc.weight": 0.0, "layer1.downsample.0.weight": 1.0}


def test_groups_of_an_expression_can_be_used() -> None:
    assert list(renamed(weights("block1_conv2.weight"), {r"^block(\d)_conv(\d)": r"layer\1.conv\2"}, "w")) == [
        "layer1.conv2.weight"
    ]


def test_an_entry_that_matches_nothing_is_an_error_with_the_names() -> None:
    with pytest.raises(RenameError, match=r"'\^fc' matches no weight in w.pth, which has 'a', 'b', 'c' and 1 more"):
        renamed(weights("a", "b", "c", "d"), {"^fc": "head"}, "w.pth")


def test_two_weights_with_one_name_are_an_error() -> None:
    with pytest.raises(RenameError, match=r"gives the weights 'a\.w' and 'b\.w' of w\.pth the same name 'c\.w'"):
        renamed(weights("a.w", "b.w"), {"^[ab]": "c"}, "w.pth")


def shapes(*names: str) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names, (2,))


@pytest.mark.parametrize(
    ("given", "model", "rename"),
    [
        (("conv.weight", "linear.weight", "linear.bias"), ("conv.weight", "fc.weight", "fc.bias"), {r"^linear\.": "fc."}),
        (("l.0.shortcut.w", "l.1.shortcut.w"), ("l.0.downsample.w", "l.1.downsample.w"), {r"\.shortcut\.": ".downsample."}),
        (("encoder.a.w", "encoder.b.w", "x.w"), ("a.w", "b.w", "x.w"), {r"^encoder\.": ""}),
        (("a.w",), ("b.bias",), {}),
        (("a.w", "c.w"), ("a.w",), {r"^c\b": None}),
        (("a.w", "a.u"), ("a.w",), {}),
    ],
)
def test_a_mapping_is_suggested_where_names_differ_in_one_part(
    given: tuple[str, ...], model: tuple[str, ...], rename: dict[str, str | None]
) -> None:
    assert suggested_rename(shapes(*given), shapes(*model), model) == rename


def test_shapes_tell_which_names_belong_together() -> None:
    model = {"one.weight": (2, 3), "two.weight": (4, 5)}
    found = suggested_rename({"b.weight": (2, 3), "a.weight": (4, 5)}, model, model)
    assert found == {r"^b\.": "one.", r"^a\.": "two."}


def test_long_lists_are_shortened() -> None:
    assert listed(["a"]) == "'a'"
    assert listed("abcde") == "'a', 'b', 'c' and 2 more"
