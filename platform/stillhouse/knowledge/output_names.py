"""Names of a model's outputs that several packages know."""

LOGITS = "logits"
"""The output that kinds of knowledge read by default."""
