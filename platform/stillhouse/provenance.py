"""Where a result comes from: code, versions, hardware."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

import stillhouse
from stillhouse.workers import COMMIT_VARIABLE

_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "numpy")


@functools.cache
def code_facts() -> dict[str, str | None]:
    """`version`, `commit` (of a checkout; None for an installed package) and `package_path` of the running code.

    A copy of a checkout on another node has no `.git`: the driver sets an environment variable to the commit.
    """
    package = Path(stillhouse.__file__).resolve().parent
    root = package.parents[1]
    commit = os.environ.get(COMMIT_VARIABLE) or None
    if (root / ".git").exists():
        try:
            commit = subprocess.run(  # noqa: S603
                ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607
                capture_output=True,
                encoding="utf-8",
                timeout=10,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            commit = None
    return {"version": stillhouse.__version__, "commit": commit, "package_path": str(package)}


def environment_facts() -> dict[str, str | int | None]:
    """Versions and hardware of this machine, for the report."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "stillhouse": stillhouse.__version__,
        "commit": code_facts()["commit"],
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
    }


def place_of(device: str, threads: int) -> str:
    """The hardware that computes on `device` in this process: the GPU's name, or the processor with its number of threads."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{_processor()}, {threads} thread{'s' * (threads != 1)}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
