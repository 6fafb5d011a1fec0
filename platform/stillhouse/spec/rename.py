"""The key `rename`: regular expressions that give the weights of a checkpoint other names."""

import re


def rename_problem(pattern: str, replacement: str | None) -> str | None:
    """What is wrong with one entry of `rename`; None if it can be applied."""
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"must be a regular expression, got '{pattern}': {error}"
    try:
        compiled.sub(replacement or "", "")
    except (re.error, IndexError) as error:
        return f"must be a replacement as Python's re.sub takes it, got '{replacement}': {error}"
    return None
