"""No operator makes the processor wait for a GPU in a training step; calls that would wait are counted on a CPU."""

from typing import Any

import pytest

from stillhouse import compress
from stillhouse.compress.chain import Chain
from stillhouse.distill.forward import ForwardPass
from stillhouse.testing import OperatorTrial
from stillhouse.testing.waits import counted

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "prune": [{"ratio": 0.5}],
    "low_rank": [{"ratio": 0.5}],
    "quantize": [{"weight_bits": 4, "activation_bits": 4}],
}
"""Besides the defaults, which may change nothing."""
CASES = [(name, options) for name in compress.names() for options in [{}, *OPTIONS.get(name, [])]]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_no_operator_waits_for_the_device_in_a_step(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the student's forward pass nor around it, while no phase of the operator begins or ends."""
    trainer = OperatorTrial(compress.find(name)(**options)).trainer(epochs=6)
    for _ in range(3):
        trainer.run_epoch()
    noted: list[str] = []
    calls: list[str] = []

    def watch(owner: type, method: str) -> None:
        original = getattr(owner, method)

        def counting(*arguments: Any, **given: Any) -> Any:
            calls.append(method)
            with counted(noted):
                return original(*arguments, **given)

        monkeypatch.setattr(owner, method, counting)

    watch(ForwardPass, "__call__")
    for hook in ("before_step", "after_step"):
        watch(Chain, hook)
    trainer.run_epoch()
    assert "__call__" in calls
    assert noted == []
