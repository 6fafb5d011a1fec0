"""Controls that a sweep cannot have are refused in one sentence, when it is planned."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import SpecError
from stillhouse.sweep.planning.spec_check import check

SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "teachers": {"big": {"model": "lenet"}},
    "students": ["mlp"],
    "methods": {"kd": "defaults"},
}
OWN = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter({scale})
    def forward(self, x):
        return x * self.scale

def net(num_classes, input_shape):
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), {last})
"""


def test_the_controls_are_spelled_out_with_the_baseline() -> None:
    assert check(SPEC).controls == ("scratch",)
    assert check({**SPEC, "controls": ["random_teacher"]}).controls == ("scratch", "random_teacher")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"controls": ["random_techer"]},
            "controls must be among scratch and random_teacher, got 'random_techer'; did",
        ),
        ({"controls": ["kd"]}, "controls must be among scratch and random_teacher, got 'kd'"),
        (
            {"controls": ["random_teacher"], "teachers": {}, "methods": {"scratch": {}}},
            "controls must not have random_teacher in a sweep without teachers; remove it",
        ),
    ],
)
def test_a_control_that_cannot_be_is_refused(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        check({**SPEC, **changed})


@pytest.mark.parametrize(
    ("last", "refused"), [("Scaled()", True), ("nn.BatchNorm1d(num_classes)", False), ("nn.Identity()", False)]
)
def test_a_teacher_whose_function_brings_weights_needs_a_way_to_draw_them_again(
    last: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_net_{last[:3].lower().strip('.')}{len(last)}"
    (tmp_path / f"{name}.py").write_text(OWN.format(scale="torch.arange(10.0)", last=last))
    monkeypatch.syspath_prepend(tmp_path)
    spec = {**SPEC, "teachers": {"big": {"model": f"{name}:net"}}, "controls": ["random_teacher"]}
    if not refused:
        assert check(spec).controls == ("scratch", "random_teacher")
        return
    with pytest.raises(SpecError, match=r"teachers.big cannot be untrained, layer '2' .Scaled. has weights, but no function"):
        check(spec)
    assert check({**spec, "controls": ["scratch"]}).controls == ("scratch",)
