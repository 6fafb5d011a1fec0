"""What the driver makes of a teacher's trouble. Ray itself is stood in for; whole sweeps are in test_end_to_end."""

from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.sweep.cluster import asked


class Handle:
    """An actor's handle whose every method gives an answer."""

    def __getattr__(self, _method: str) -> "Handle":
        return self

    def remote(self, *_arguments: Any) -> None:
        return None


def answering(patch: pytest.MonkeyPatch, error: Exception) -> None:
    def get(_answer: Any) -> None:
        raise error

    patch.setattr(ray, "get", get)


def test_a_reduction_that_raises_at_the_teacher_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = ValueError("no such axis")
    traceback = "Traceback (most recent call last):\n  File own.py, line 3, in reduce\nValueError: no such axis\n"
    answering(monkeypatch, RayTaskError("measure", traceback, cause).as_instanceof_cause())
    with pytest.raises(UsageError, match="can not measure what the methods ask of it: ValueError: no such axis") as caught:
        asked(Handle(), "measure")
    assert "\n" not in str(caught.value)


def test_a_teacher_that_is_gone_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ActorDiedError())
    with pytest.raises(InfrastructureError, match="actor is gone"):
        asked(Handle(), "measure")
