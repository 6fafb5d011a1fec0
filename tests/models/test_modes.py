"""Evaluation mode for a while, and every module's own mode after it."""

import pytest
from torch import nn

from stillhouse.models.modes import evaluating


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_has_its_own_mode_again_afterwards(fails: bool) -> None:
    frozen = nn.BatchNorm1d(2).eval()
    model = nn.Sequential(nn.Dropout(), frozen)
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [module.training for module in (model, model[0], frozen)] == [True, True, False]
