"""Sizes as people write them."""

import re


def parse_bytes(text: str) -> int:
    """A number of bytes from `500MB`, `20 GB`, `1.5T` or `0`; powers of 1000.

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip())
    if match is None:
        raise ValueError(f"must be a size such as 500MB or 20GB, got '{text}'")
    return int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " "))
