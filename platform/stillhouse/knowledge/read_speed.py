"""How fast this machine gathers rows from a memory map in the store's folder."""

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from stillhouse.device import synchronise

_MEASURED_BYTES = 16 << 20
_BATCH = 256
_BATCHES = 8


def seconds_per_row(folder: Path, row_bytes: int, device: str = "cpu") -> float:
    """The seconds in which one thread gathers a row of `row_bytes` in random order and copies it to the device.

    It is the least of three measurements, about 50 ms in all.

    The file is in memory, like every view that fits there and is read more than once; it uses only a part of the free disk
    space. The result is infinite if the file cannot be written.
    """
    num_floats = max(1, row_bytes // 4)
    try:
        rows = max(2, min(_MEASURED_BYTES, shutil.disk_usage(folder).free // 4) // (4 * num_floats))
        with tempfile.TemporaryFile(dir=folder) as file:
            # NumPy's `tofile` does not report a full disk.
            file.write(np.arange(rows * num_floats, dtype=np.float32).data)
            file.flush()
            table = np.asarray(np.memmap(file, np.float32, "r", shape=(rows, num_floats)))
            batch = min(_BATCH, rows)
            batches = np.random.default_rng(0).integers(rows, size=(_BATCHES, batch))
            seconds = []
            for _ in range(3):
                started = time.perf_counter()
                for indices in batches:
                    gathered = table.take(indices, axis=0)
                    if device != "cpu":
                        torch.from_numpy(gathered).to(device)
                synchronise(device)
                seconds.append(time.perf_counter() - started)
    except OSError:
        return float("inf")
    return min(seconds) / (batch * _BATCHES)
