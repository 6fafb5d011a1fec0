"""Hyper-parameters between the spec, where they are plain data, and a method, which has types and rules for them."""

from collections.abc import Mapping
from typing import Any

from stillhouse import methods
from stillhouse.distill.method import Method
from stillhouse.spec.hyperparameter import typed


def make_method(name: str, hyperparameters: Mapping[str, Any]) -> Method:
    """The method with the hyper-parameters of a trial; lists become the tuples that its fields are typed as.

    Raises:
        UsageError: there is no such method.
        ValueError: a value has the wrong type or breaks its rule.
    """
    kind = methods.find(name)
    return kind(**{key: typed(kind, key, value) for key, value in hyperparameters.items()})
