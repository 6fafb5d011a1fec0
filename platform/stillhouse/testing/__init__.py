"""Conformance suites for authors of methods, and reference numbers to check a loss against."""

from stillhouse.testing.methods import CHECKS, MethodTrial, ReferenceCase, check_method, make_step

__all__ = ["CHECKS", "MethodTrial", "ReferenceCase", "check_method", "make_step"]
