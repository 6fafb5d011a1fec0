"""Checks of this machine: what a sweep needs, and whether it works."""

import os
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stillhouse.durable import read_checked, write_checked

LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one check: its name, whether it passed, the fact or the remedy, and the node unless it is this machine."""

    what: str
    good: bool
    fact: str
    node: str = ""


def examine(home: Path) -> list[Finding]:
    """All checks. They change nothing except a file that is written and removed under `home`."""
    checks: tuple[tuple[str, Callable[[Path], tuple[bool, str]]], ...] = (
        ("python", _python),
        ("torch and torchvision", _torch),
        ("ray", _ray),
        ("cores and memory", _machine),
        ("gpus", _gpus),
        ("home", _home),
        ("mlflow store", _store),
        ("methods", _methods),
    )
    findings = []
    for what, check in checks:
        try:
            good, fact = check(home)
        except Exception as error:  # a check that raises is a finding
            good, fact = False, f"{type(error).__name__}: {error}"
        findings.append(Finding(what, good, fact))
    return findings


def _python(_home: Path) -> tuple[bool, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    return sys.version_info >= (3, 11), f"{version}, needs 3.11 or later"


def _torch(_home: Path) -> tuple[bool, str]:
    import torch
    import torchvision

    # The operator exists only if both builds match.
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return True, f"{torch.__version__} and {torchvision.__version__}"


def _ray(_home: Path) -> tuple[bool, str]:
    from importlib.metadata import version

    return True, version("ray")


def _machine(_home: Path) -> tuple[bool, str]:
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return True, f"{os.cpu_count()} cores, {pages / 2**30:.1f} GiB"


def _gpus(_home: Path) -> tuple[bool, str]:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return True, ", ".join(names) or "none; sweeps run on the CPU"


def _home(home: Path) -> tuple[bool, str]:
    probe = home / f".doctor-{secrets.token_hex(4)}"
    try:
        write_checked(probe, b"probe")
        read_checked(probe)
    except OSError as error:
        return False, f"cannot write into {home}: {error.strerror or error}; choose another with --home"
    finally:
        with suppress(OSError):
            probe.unlink()
    free = shutil.disk_usage(home).free
    return free >= LEAST_FREE_BYTES, f"{home} is writable, {free / 2**30:.1f} GiB free"


def _store(home: Path) -> tuple[bool, str]:
    from stillhouse.tracking import locate

    return True, locate(None, home).shown


def _methods(_home: Path) -> tuple[bool, str]:
    from stillhouse import methods

    for name in methods.names():
        methods.find(name)
    return True, f"{len(methods.names())} found, gains are measured against {methods.baseline()}"
