"""Models with very many layers are refused in a sentence and in bounded time, whoever wrote them."""

import sys
import threading
import types
from collections.abc import Callable

import pytest
from torch import nn

from stillhouse.errors import UsageError
from stillhouse.models import layer_limit
from stillhouse.models.blueprint import build_problems
from stillhouse.models.registry import build_model, sketch_model


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The name of a user-defined model of that many layers."""

    def use(builder: Callable[..., nn.Module]) -> str:
        module = types.ModuleType("deep_nets")
        module.net = builder  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "deep_nets", module)
        return "deep_nets:net"

    return use


def chain(num_classes: int, input_shape: tuple[int, int, int], depth: int) -> nn.Module:
    pixels = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), *(nn.Identity() for _ in range(depth)), nn.Linear(pixels, num_classes))


def test_a_model_of_20000_layers_is_refused_with_their_number(deep: Callable[..., str]) -> None:
    model = deep(chain)
    # The container, Flatten and Linear are modules too.
    message = f"{model} must have at most 10,000 layers, it has 20,003; use fewer"
    with pytest.raises(UsageError, match=message):
        build_model(model, num_classes=10, input_shape=(1, 8, 8), depth=20_000)
    (problem,) = build_problems(model, {"depth": 20_000}, 10, (1, 8, 8))
    assert str(problem) == message


def test_a_function_that_does_not_stop_to_add_layers_is_ended(
    deep: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_limit, "_MAX_REGISTRATIONS", 1_000)

    def endless(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        grown = nn.Sequential()
        while True:
            grown.append(nn.Identity())

    model = deep(endless)
    with pytest.raises(UsageError, match=f"{model} must have at most 10,000 layers, it has more than 10,000; use fewer"):
        sketch_model(model, num_classes=10, input_shape=(1, 8, 8))


def test_a_model_of_10000_layers_is_built(deep: Callable[..., str]) -> None:
    built = sketch_model(deep(chain), num_classes=10, input_shape=(1, 8, 8), depth=9_997)
    assert sum(1 for _ in built.modules()) == 10_000


def test_what_other_threads_build_does_not_count(deep: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_limit, "_MAX_REGISTRATIONS", 1_000)

    def with_a_neighbour(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        neighbour = threading.Thread(target=lambda: nn.Sequential(*(nn.Identity() for _ in range(1_001))))
        neighbour.start()
        neighbour.join()
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    assert len(list(build_model(deep(with_a_neighbour), num_classes=10, input_shape=(1, 8, 8)).modules())) == 3
