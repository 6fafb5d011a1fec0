"""Kinds of knowledge that a teacher provides, and the sealed views in which they are stored."""

from stillhouse.knowledge.kinds import Knowledge, feature, input_gradient, logits, output, reduced

__all__ = ["Knowledge", "feature", "input_gradient", "logits", "output", "reduced"]
