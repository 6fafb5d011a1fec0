from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stillhouse.testing import ReferenceCase

CASES = Path(__file__).parents[1] / "reference" / "cases"


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def open_case(request: pytest.FixtureRequest) -> Callable[[str], ReferenceCase]:
    """Opens a case by name, in both precisions in turn."""
    return lambda name: ReferenceCase(CASES / f"{name}.npz", request.param)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The networks here are so small that more threads only wait for each other."""
    torch.set_num_threads(1)
