"""The public names of the package, which are imported when they are used."""

import subprocess
import sys

import pytest

from stillhouse import knowledge
from stillhouse.knowledge import kinds


def test_each_public_name_is_that_of_kinds() -> None:
    assert knowledge.__all__
    for name in knowledge.__all__:
        assert getattr(knowledge, name) is getattr(kinds, name)
        assert name in dir(knowledge)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'logit'"):
        knowledge.logit  # noqa: B018


def test_the_package_itself_does_not_wait_for_torch() -> None:
    program = "import sys, stillhouse.knowledge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
