import pytest

from stillhouse import methods
from stillhouse.testing import CHECKS, suiting_trial


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", methods.names())
def test_every_method_passes_the_check(name: str, check: str) -> None:
    CHECKS[check](suiting_trial(methods.find(name).shortened()))
