"""Handles of actors whose answers are given, and Ray replaced by what returns them."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray


@dataclass
class Handle:
    """An actor's handle: the answers of its methods; an answer that is an error is raised."""

    answers: dict[str, Any]

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *_arguments: self.answers.get(method))


@pytest.fixture
def make_handle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Handle]:
    """Handles by the answers of their methods; `ray.get` and `ray.wait` take those answers."""

    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda answers, timeout: (answers, []))
    return lambda **answers: Handle(answers)
