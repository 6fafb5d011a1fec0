"""The command line."""

from stillhouse.cli.app import app, main

# isort: off
# The order of these imports is the order of the commands in `stillhouse --help`.
from stillhouse.cli import sweeps, reference, lists, reports, doctor, teachers, data  # noqa: F401

__all__ = ["app", "main"]
