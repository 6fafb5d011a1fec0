"""The trainable of Ray Tune; whole trials run in test_end_to_end."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stillhouse.errors import InfrastructureError
from stillhouse.spec.records import Trial
from stillhouse.sweep.execution import trainable
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG, DistillTrial, key_of

MakeTrial = Callable[..., Trial]


def test_the_key_is_read_off_a_trials_json(make_trial: MakeTrial) -> None:
    assert key_of(make_trial("abc").model_dump_json()) == "abc"


def poisoned(*_arguments: object, **_options: object) -> Any:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> DistillTrial:
    """A worker's process whose GPU answers no more, and which has no record to write: that would be an error."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", poisoned)
    monkeypatch.setattr(trainable, "own_device", lambda: "cuda")
    monkeypatch.setattr(trainable, "existing_record", lambda *_arguments: None)
    monkeypatch.setattr(trainable, "failed_record", lambda *_arguments, **_options: pytest.fail("no trial failed"))
    one = DistillTrial.__new__(DistillTrial)
    one._environment, one._group, one._runner, one._data = SimpleNamespace(workers=1), None, None, None  # type: ignore[assignment]
    one._disk_full, one._reported = None, False
    return one


def test_a_trial_in_whose_process_the_gpu_fails_is_no_failed_trial(process: DistillTrial) -> None:
    not_failed = SimpleNamespace(finished=False, epoch_steps=poisoned, fail=lambda _reason: pytest.fail("no trial failed"))
    process._runner = not_failed  # type: ignore[assignment]
    with pytest.raises(InfrastructureError, match="the GPU failed in this process"):
        process.step()


def test_a_trial_whose_start_fails_for_the_gpu_is_no_failed_trial(
    process: DistillTrial, monkeypatch: pytest.MonkeyPatch, make_trial: MakeTrial
) -> None:
    monkeypatch.setattr(trainable, "TrialRunner", poisoned)
    with pytest.raises(InfrastructureError, match="the GPU failed in this process"):
        process._begin({TRIAL_CONFIG: make_trial().model_dump_json()})


def test_a_process_whose_gpu_answers_no_more_is_not_used_for_another_trial(
    process: DistillTrial, monkeypatch: pytest.MonkeyPatch, make_trial: MakeTrial
) -> None:
    """An error makes Tune start the trial in a new process; after `False` it would give the trial up (ray 2.60)."""
    monkeypatch.setattr(trainable, "TrialRunner", lambda *_arguments, **_options: pytest.fail("the process was used again"))
    with pytest.raises(InfrastructureError, match="the GPU failed in this process"):
        process.reset_config({TRIAL_CONFIG: make_trial().model_dump_json()})
