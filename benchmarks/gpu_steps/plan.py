"""The steps of gpu_check: what each is called, how long it may take, and what a step may use."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class Skip(Exception):
    """The step cannot run here, for this reason."""


class Failed(AssertionError):
    """The step ran, and something is not as it must be.

    Attributes:
        figures: what was measured all the same.
    """

    def __init__(self, problems: list[str], figures: Mapping[str, Any]) -> None:
        super().__init__("; ".join(problems))
        self.figures = dict(figures)


@dataclass(frozen=True)
class Settings:
    """Where the steps run.

    Attributes:
        device: `cuda`, or `cpu` for tiny sizes that check the script itself; times have no limits there.
    """

    device: str = "cuda"

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    def size(self, full: Any, tiny: Any) -> Any:
        """`full` on a GPU, `tiny` on a CPU."""
        return tiny if self.tiny else full


def finish(problems: list[str], figures: dict[str, Any]) -> dict[str, Any]:
    """The figures.

    Raises:
        Failed: there are problems.
    """
    if problems:
        raise Failed(problems, figures)
    return figures


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        function: `module.function` in this folder; it takes the settings and returns figures.
        gpu_s: the expected seconds on a GPU. The limit is twice that.
        cpu_limit_s: the limit with tiny sizes.
    """

    name: str
    function: str
    gpu_s: float
    cpu_limit_s: float = 60.0

    def limit_s(self, settings: Settings) -> float:
        return self.cpu_limit_s if settings.tiny else 2 * self.gpu_s

    def run(self, settings: Settings) -> dict[str, Any]:
        """The step's figures.

        Raises:
            Skip: it cannot run here.
            Failed: something is not as it must be.
        """
        module, function = self.function.split(".")
        work: Callable[[Settings], dict[str, Any]] = getattr(importlib.import_module(f"gpu_steps.{module}"), function)
        return work(settings)


STEPS = {
    0: Step("machine", "parts.machine", 10),
    1: Step("views and normalisation are equal on both devices", "parts.pixels", 30),
    2: Step("conformance of every method and operator", "methods.conformance", 120),
    3: Step("precision, optimisers and resuming", "training.resuming", 40),
    4: Step("a training step", "training.step_times", 60),
    5: Step("filling and verifying views", "teachers.filling", 60),
    6: Step("serving, and processes that share the GPU", "teachers.serving", 60),
    7: Step("trials that share a GPU, through Ray", "sweeps.sharing", 150, 120),
    8: Step("what a shared teacher saves", "sweeps.saving", 70, 120),
    9: Step("packed trials", "packed.compare", 90),
}
