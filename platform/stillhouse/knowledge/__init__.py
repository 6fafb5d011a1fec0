"""Kinds of knowledge and the sealed views that keep it."""

from stillhouse.knowledge.kinds import Knowledge, feature, input_gradient, logits, output, reduced

__all__ = ["Knowledge", "feature", "input_gradient", "logits", "output", "reduced"]
