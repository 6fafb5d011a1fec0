"""Sizes as people write them."""

import re

from stillhouse.errors import shorten


def parse_bytes(text: str) -> int:
    """A number of bytes from `500MB`, `20 GB`, `1.5T` or `0`; powers of 1000.

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip())
    if match is None:
        raise ValueError(f"must be a size such as 500MB or 20GB, got '{shorten(text)}'")
    size = float(match[1]) * 1000 ** " kMGT".index(match[2] or " ")
    if size >= 2**63:
        raise ValueError(f"must be a size below 2^63 bytes, got '{shorten(text)}'")
    return int(size)
