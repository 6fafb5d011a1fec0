"""Students that end in softmax are refused in the plan; log-softmax is named and allowed, since it changes no loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stillhouse.errors import SpecError
from stillhouse.sweep.planning.spec_check import check, survey

MODULE = """
from torch import nn

def _net(num_classes, input_shape, *last):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), *last)

def softmax(num_classes, input_shape):
    return _net(num_classes, input_shape, nn.Softmax(1))

def log_softmax(num_classes, input_shape):
    return _net(num_classes, input_shape, nn.LogSoftmax(1))

def plain(num_classes, input_shape):
    return _net(num_classes, input_shape)
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "ending_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return {"name": "s", "dataset": {"name": "digits"}, "methods": {"scratch": {}}}


def test_a_student_that_ends_in_softmax_is_refused_with_the_remedy(spec: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        check({**spec, "students": ["mlp", "ending_nets:softmax"]})
    (problem,) = caught.value.problems
    assert problem.key == "students[1]"
    assert "its outputs are probabilities, not logits; return the values before the last softmax" in problem.message


def test_a_student_that_ends_in_log_softmax_is_named(spec: dict[str, Any]) -> None:
    found = survey({**spec, "students": ["ending_nets:log_softmax", "ending_nets:plain"]})
    assert not found.problems
    (note,) = [note for note in found.notes if "log-probabilities" in note]
    assert note.startswith("students[0] (ending_nets:log_softmax): ")


def test_log_softmax_changes_no_cross_entropy_and_softmax_does() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(16, 10), torch.arange(16) % 10
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(F.cross_entropy(logits.log_softmax(1), labels), expected)
    assert not torch.allclose(F.cross_entropy(logits.softmax(1), labels), expected)
