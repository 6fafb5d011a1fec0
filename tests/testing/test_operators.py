"""The conformance suite for operators: it accepts the example of the documentation, and names what a faulty one breaks."""

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from stillhouse import compress
from stillhouse.compress.operator import Card, Context, Conversion, History, Moment, Operator, State
from stillhouse.testing import OPERATOR_CHECKS, OperatorTrial, check_operator
from stillhouse.testing import operators as operators_module

ROOT = Path(__file__).parents[2]
RESUMED = "a_resumed_training_ends_with_the_same_weights"
CARD = Card(title="A test", does="Something wrong.", effect="None.")


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Operator]:
    """The operator of docs/your-own-operator.md, as a user has it beside a spec."""
    page = (ROOT / "docs" / "your-own-operator.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    (tmp_path / "half.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "half", raising=False)
    importlib.invalidate_caches()
    compress.find.cache_clear()
    return compress.find("half:Half")


@pytest.mark.parametrize("model", ["resnet8", "lenet", "mlp"])
def test_the_documented_operator_passes_every_check(documented: type[Operator], model: str) -> None:
    check_operator(documented(), model=model)


def test_networks_are_trained_and_run_on_the_device_of_the_trial(
    documented: type[Operator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device `meta` stands for a GPU: tensors have a place there, but no values."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(operators_module, "Trainer", lambda **given: made.update(given))
    trial = OperatorTrial(documented(), device="meta")
    trial.trainer()
    assert made["device"] == "meta"
    assert trial.outputs(trial.convert().model).device.type == "meta"


@dataclass(frozen=True, kw_only=True)
class Forgetful(Operator):
    """Rounds once, but not after each step: the file is another network than the one that was judged."""

    card: ClassVar[Card] = CARD

    def pack(self, model: nn.Module, state: State, history: History) -> State:
        return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}

    def unpack(self, model: nn.Module, packed: State, history: History) -> State:
        return {name: value.float() if value.is_floating_point() else value for name, value in packed.items()}


@dataclass(frozen=True, kw_only=True)
class Random(Operator):
    """Draws from the clock's generator instead of the context's."""

    card: ClassVar[Card] = CARD

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        fresh = torch.Generator()
        fresh.seed()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=fresh))
        return Conversion(model=model)


@dataclass(frozen=True, kw_only=True)
class Counting(Operator):
    """Remembers in a global what belongs into the network."""

    card: ClassVar[Card] = CARD
    seen: ClassVar[list[int]] = []

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        self.seen.append(moment.step)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 - 1e-3 * len(self.seen))


@pytest.mark.parametrize(
    ("operator", "broken"),
    [
        (Forgetful(), {"a_stored_network_is_the_trained_one"}),
        (
            Random(),
            {"conversions_are_equal", "neutral_options_change_nothing", "a_resumed_training_ends_with_the_same_weights"},
        ),
        (Counting(), {"a_resumed_training_ends_with_the_same_weights"}),
        (Operator(), {"card"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_faulty_operator_fails_the_checks_that_it_breaks(operator: Operator, broken: set[str]) -> None:
    failed = set()
    for name, check in OPERATOR_CHECKS.items():
        try:
            check(OperatorTrial(operator))
        except AssertionError:
            failed.add(name)
    assert failed == broken
