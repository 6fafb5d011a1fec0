"""No training step of a shipped method waits for a GPU, and all passes of the student have the training's precision.

Calls that would wait are counted on a CPU (`stillhouse.testing.waits`), for every method that is found, with all its choices.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse import methods
from stillhouse.distill.method import Method, Step, Update
from stillhouse.distill.optimiser import Optimisers
from stillhouse.testing import suiting_trial
from stillhouse.testing.waits import counted

ALLOWED = {"kd_svd": {"aten._linalg_eigh.default"}}
"""By method, the waits that cannot be avoided: PyTorch has no function for eigenvectors that leaves its error flags on the
device, and the decomposition takes longer than the wait (decision 36)."""


def _choices(name: str) -> Iterator[dict[str, Any]]:
    """Settings that each change one hyper-parameter: to another of its choices, to the other boolean, or away from 0."""
    cls = methods.find(name)
    for hyperparameter, rule in cls.hyperparameters().items():
        default = cls.defaults()[hyperparameter]
        others: Sequence[Any] = rule.choices or ((not default,) if isinstance(default, bool) else ())
        if not others and isinstance(default, int | float) and default == 0:
            others = (_AWAY_FROM_ZERO,)
        for value in others:
            if value != default:
                yield {hyperparameter: value}


_AWAY_FROM_ZERO = 0.1


def _variants() -> list[Any]:
    return [
        pytest.param(name, json.dumps(changes), id=name + (f" {changes}" if changes else ""))
        for name in methods.names()
        for changes in [{}, *_choices(name)]
    ]


@dataclass(frozen=True)
class Observed:
    """What a training showed.

    Attributes:
        waits: by epoch and step, the calls that would wait for a GPU.
        passes: of each forward pass in training of the student and of networks that are evaluated beside it, whether it had the
            training's precision.
    """

    waits: Mapping[tuple[int, int], list[str]]
    passes: Sequence[bool]
    steps_per_epoch: int


@functools.cache
def _observe(name: str, settings: str) -> Observed:
    """A training in bfloat16, as on a GPU; no setting makes it diverge at this rate."""
    method = methods.find(name).shortened(**json.loads(settings))
    trial = suiting_trial(method)
    waits: dict[tuple[int, int], list[str]] = {}
    passes: list[bool] = []
    step, apply = type(method).step, Optimisers.apply

    def counted_step(self: Method, given: Step, update: Update) -> dict[str, Tensor]:
        place = (given.epoch, sum(epoch == given.epoch for epoch, _ in waits))
        with counted(waits.setdefault(place, [])):
            return step(self, given, update)

    def uncounted(self: Optimisers, *groups: str) -> None:
        # An optimiser's step counters are on the processor, and a fused one reads nothing.
        if not waits:  # helpers of the task are trained before the method's first step
            apply(self, *groups)
            return
        own = list(waits.values())[-1]
        before = len(own)
        apply(self, *groups)
        del own[before:]

    def note(student: nn.Module, _inputs: Any) -> None:
        if student.training:
            passes.append(torch.is_autocast_enabled("cpu"))

    recipe = {"learning_rate": 1e-4, "mixed_precision": "bfloat16", "mixed_passes": "all"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method), "step", counted_step)
        patch.setattr(Optimisers, "apply", uncounted)
        trainer = trial.trainer(training=trial.ground.training.model_copy(update=recipe))
        for network in (trainer.student, *trainer.peers().values()):
            network.register_forward_pre_hook(note)
        trainer.fit()
    return Observed(waits, passes, trainer.split.batches_per_epoch)


@pytest.mark.parametrize(("name", "settings"), _variants())
def test_no_step_of_a_method_waits_for_the_device(name: str, settings: str) -> None:
    """Except in the first epoch, and in the first step of a later one: some methods look at a whole epoch and change course."""
    waits = _observe(name, settings).waits
    assert len(waits) == 4 * _observe(name, settings).steps_per_epoch
    found = {place: set(noted) - ALLOWED.get(name, set()) for place, noted in waits.items() if place[0] > 0 and place[1] > 0}
    assert {place: noted for place, noted in found.items() if noted} == {}


@pytest.mark.parametrize(("name", "settings"), _variants())
def test_all_passes_of_the_student_in_training_have_the_trainings_precision(name: str, settings: str) -> None:
    passes = _observe(name, settings).passes
    assert all(passes), f"{passes.count(False)} of {len(passes)} passes are not in bfloat16; use step.run_network"
