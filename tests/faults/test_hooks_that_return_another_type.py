"""A hook of a method that returns something of another type is reported in one sentence that names hook, rule and remedy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from stillhouse import methods
from stillhouse.distill.method import Card, Method, WrongReturnError
from stillhouse.errors import SpecError, UsageError
from stillhouse.knowledge import logits
from stillhouse.sweep.planning.spec_check import check
from stillhouse.testing import check_method


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class Wrong(Method):
    """Returns what a test gives it from one hook."""

    card: ClassVar[Card] = Card(title="A method for this test", family="control", equations="none")
    hook: ClassVar[str] = ""
    returned: ClassVar[Any] = None

    def knowledge(self, *_: Any) -> Any:
        return self.returned if self.hook == "knowledge" else {"logits": logits()}

    def student_layers(self, *_: Any) -> Any:
        return self.returned if self.hook == "student_layers" else []

    def modules(self, *_: Any) -> Any:
        return self.returned if self.hook == "modules" else {}

    def stages(self, setup: Any) -> Any:
        return self.returned if self.hook == "stages" else super().stages(setup)

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Any:
        return self.returned if self.hook == "classifiers" else {"student": student}

    def loss(self, step: Any) -> Any:
        return self.returned if self.hook == "loss" else super().loss(step)


CASES: Sequence[tuple[str, Any, str]] = [
    ("knowledge", [logits()], "must return a mapping of names to Knowledge, got an object of type list"),
    ("knowledge", {"logits": "logits"}, "got an object of type str for 'logits'"),
    ("student_layers", "layer3", "got the text of one; write ['layer3']"),
    ("student_layers", [nn.ReLU()], "got an object of type ReLU in it"),
    ("modules", {"adapter": nn.Linear(2, 2)}, "got an object of type Linear for 'adapter'; write Helper(module=...)"),
    ("modules", nn.Linear(2, 2), "got an object of type Linear;"),
    ("modules", None, "got None;"),
    ("stages", [("train", 2)], "got an object of type tuple in it"),
    ("classifiers", {"whole": nn.Linear(2, 2)}, "got the names whole"),
    ("loss", torch.tensor(1.0), "must return its terms by name, such as {'kd': loss}, got an object of type Tensor"),
    ("loss", {"kd": 1.0}, "got an object of type float for 'kd'"),
    ("loss", {}, "got an empty mapping"),
]


@pytest.mark.parametrize(("hook", "returned", "sentence"), CASES)
def test_the_check_of_a_method_names_the_hook(monkeypatch: pytest.MonkeyPatch, hook: str, returned: Any, sentence: str) -> None:
    monkeypatch.setattr(Wrong, "hook", hook)
    monkeypatch.setattr(Wrong, "returned", returned)
    with pytest.raises(WrongReturnError) as raised:
        check_method(Wrong(), epochs=2)
    assert sentence in str(raised.value)
    assert hook in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_plan_reports_a_module_instead_of_a_helper_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "raw_module.py").write_text(
        "from torch import nn\n"
        "from stillhouse.distill.method import Card, Method\n\n\n"
        "class RawModule(Method):\n"
        "    card = Card(title='x', equations='x')\n\n"
        "    def modules(self, setup):\n"
        "        return {'adapter': nn.Linear(2, 2)}\n"
    )
    methods.add_folder(tmp_path)
    spec = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": {"raw_module": {}}}
    with pytest.raises(SpecError) as raised:
        check({**spec, "search": {"trials_per_method": 1, "max_epochs": 1}})
    (problem,) = raised.value.problems
    assert "RawModule.modules must return a mapping of names to Helper" in str(problem)
    assert "raw_module" in problem.key


def test_several_teachers_for_a_method_that_learns_from_one_are_refused() -> None:
    with pytest.raises(UsageError, match="learns from one teacher"):
        check_method(Method(), teacher=["resnet8", "lenet"])


def test_progress_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    check_method(Wrong(), epochs=2, progress=True)
    lines = capsys.readouterr().err.splitlines()
    numbers = [line.split("[")[1].split("]")[0] for line in lines]
    assert numbers == [f"{number}/{len(lines)}" for number in range(1, len(lines) + 1)]
    assert any("card" in line for line in lines)
