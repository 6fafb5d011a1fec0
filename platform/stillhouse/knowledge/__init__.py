"""Kinds of knowledge that a teacher provides, and the sealed views in which they are stored."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.knowledge.kinds import Knowledge, feature, input_gradient, logits, output, reduced

__all__ = ["Knowledge", "feature", "input_gradient", "logits", "output", "reduced"]


def __getattr__(name: str) -> Any:
    # `kinds` imports torch, which commands that list sealed views need not wait for.
    if name in __all__:
        from stillhouse.knowledge import kinds

        return getattr(kinds, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
