"""Conformance suites for authors of methods, and reference numbers to check a loss against."""

from stillhouse.testing.method_trial import MethodTrial
from stillhouse.testing.methods import CHECKS, check_method
from stillhouse.testing.reference_cases import ReferenceCase
from stillhouse.testing.steps import make_step

__all__ = ["CHECKS", "MethodTrial", "ReferenceCase", "check_method", "make_step"]
