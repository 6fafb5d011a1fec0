"""Sizes that no student of a sweep may exceed."""

from collections.abc import Mapping

from stillhouse.models.size import ModelSize


def over_limit(limits: Mapping[str, float], sizes: Mapping[str, float]) -> str | None:
    """Which limit the sizes exceed, in words; None if no known size exceeds its limit.

    Args:
        limits: the largest value by metric.
        sizes: the student's known sizes, by metric.
    """
    for name, limit in limits.items():
        if sizes.get(name, 0) > limit:
            return f"{name} = {sizes[name]:,.6g} is over the limit of {limit:,.6g}"
    return None


def known_sizes(size: ModelSize) -> dict[str, float]:
    """The sizes that are known before anything runs."""
    return {"parameters": size.parameters, "size_bytes": size.size_bytes, "macs": size.macs}
