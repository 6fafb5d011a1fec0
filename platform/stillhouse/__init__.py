"""Stillhouse: knowledge distillation swept over a Ray cluster."""

__version__ = "0.1.0"
