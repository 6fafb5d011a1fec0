"""Values in the number format of a sealed view; none of them becomes infinite on the way."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import UsageError


def in_format(values: NDArray[Any], dtype: str, what: str, largest: float | None = None) -> NDArray[Any]:
    """Finite values as contiguous `dtype`.

    Args:
        what: the kind of knowledge, for the error.
        largest: the largest magnitude of values that were rounded to the format before; by default that of `values`.

    Raises:
        UsageError: some value exceeds the range of the format.
    """
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=dtype)
    if not np.isfinite(stored).all():
        check_range(float(np.abs(values.astype(np.float64)).max()) if largest is None else largest, dtype, what)
        raise ValueError(f"{what} must be finite")
    return stored


def check_range(largest: float, dtype: str, what: str) -> None:
    """Checks that the format holds numbers of the magnitude `largest`.

    Raises:
        UsageError: it does not.
    """
    # The next number after the format's largest one is rounded to infinity.
    with np.errstate(over="ignore"):
        if np.isfinite(np.float64(largest).astype(dtype)) or not np.isfinite(largest):
            return
    raise UsageError(
        f"knowledge.dtype must hold the teacher's {what}, whose values reach {largest:.3g}; {dtype} ends at "
        f"{float(np.finfo(dtype).max):g}, set knowledge.dtype: float32 in a new sweep (--fork NAME)"
    )
