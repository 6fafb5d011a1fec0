"""What the exported example prints for one image; tests/export/test_exported_files.py runs it on real exports."""

import math
from typing import Any

import numpy as np
import pytest

from stillhouse.export.example import describe


def test_logits_become_the_likeliest_class_and_its_probability() -> None:
    facts: dict[str, Any] = {"output": {"what": "logits"}, "class_names": ["cat", "dog"]}
    assert describe(np.array([0.0, math.log(3)], np.float32), facts) == "dog (0.750)"


@pytest.mark.parametrize(("outputs", "printed"), [([0.5], "0.5"), ([-12.25, 3.0], "-12.25 3")])
def test_other_outputs_are_printed_as_numbers(outputs: list[float], printed: str) -> None:
    facts: dict[str, Any] = {"output": {"what": "angle"}, "class_names": []}
    assert describe(np.array(outputs, np.float32), facts) == printed
