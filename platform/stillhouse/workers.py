"""What every worker process does first: threads, import paths, users' method folders."""

import os
import sys
from collections.abc import Iterable, Mapping

import torch


def driver_import_paths() -> list[str]:
    """Where this process finds Python code, for workers on the same machine: absolute, existing folders."""
    return [os.path.abspath(path) for path in sys.path if path == "" or os.path.isdir(path)]  # noqa: PTH100, PTH112


def prepare_worker(import_paths: Iterable[str], threads: int, method_folders: Iterable[str] = ()) -> None:
    """Makes this process find the driver's code and use its share of the machine.

    Args:
        import_paths: folders to append to `sys.path`.
        threads: of torch's operators; 0 leaves all cores.
        method_folders: folders with users' method files.
    """
    from stillhouse import methods

    for path in import_paths:
        if path not in sys.path:
            sys.path.append(path)
    for folder in method_folders:
        methods.add_folder(folder)
    torch.set_num_threads(threads or os.cpu_count() or 1)


def environment_of_workers() -> Mapping[str, str]:
    """Environment variables that workers need besides the driver's own."""
    return {
        # Fractional and zero shares must hide the other GPUs (ray 2.60).
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        # Threads that wait must not spin: a teacher that fills views shares the cores with the trials.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
