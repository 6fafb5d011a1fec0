"""The command line."""

from stillhouse.cli.app import app, main

__all__ = ["app", "main"]
