"""Where a sweep lives on disk: its folder, its lock, the spec it was started with, its facts."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stillhouse.durable import Damaged, canonical_json, read_checked, write_checked, write_json
from stillhouse.errors import InfrastructureError, UsageError, did_you_mean
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.ledger import Ledger

HOME_VARIABLE = "STILLHOUSE_HOME"

_FREE_TO_CHANGE = frozenset({"tracking", "report", "trial_resources", "max_concurrent_trials"})
"""Sections of a spec that do not decide any result."""


def resolve_home(flag: str | Path | None = None) -> Path:
    """The absolute home: the flag, else STILLHOUSE_HOME, else ~/.stillhouse."""
    return Path(flag or os.environ.get(HOME_VARIABLE) or "~/.stillhouse").expanduser().resolve()


class SweepHome:
    """The folder of one sweep under the home.

    Layout: `spec.json`, `facts` and `ledger/*.record` (checked files), `students/*.safetensors`, `trials/` with checkpoints
    of trials under way, `runs.json` (the pages of MLflow), `report/`.
    """

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        self.folder = home / "sweeps" / name
        self.ledger = Ledger(self.folder / "ledger")
        self.report = self.folder / "report"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the sweep for one driver.

        Raises:
            InfrastructureError: another driver holds it, or the folder can not be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("w")
        except OSError as error:
            raise InfrastructureError(
                f"can not write the sweep's folder {self.folder}: {error.strerror}; choose another with --home"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InfrastructureError(
                    f"sweep '{self.name}' is already run by another process; wait for it, or give this one another name"
                ) from error
            yield

    def keep_spec(self, spec: Mapping[str, Any]) -> None:
        """Notes the spec at the sweep's first run, and holds later runs to it.

        Raises:
            UsageError: the sweep was started with a spec that decides other results; names the keys that differ.
        """
        path = self.folder / "spec.json"
        kept = self.read_spec()
        if kept is not None:
            changed = sorted(
                key for key in changed_keys(kept, spec) if key.partition(".")[0].partition("[")[0] not in _FREE_TO_CHANGE
            )
            if changed:
                raise UsageError(
                    f"sweep '{self.name}' was started with another spec: {', '.join(changed)} changed; "
                    f"give this one another name (--set name=...), or undo the change to go on with the old one"
                )
        write_json(path, spec)
        # A tracking address may hold a password.
        path.chmod(0o600)

    def read_spec(self) -> dict[str, Any] | None:
        """The spec as noted; None when the sweep never started.

        Raises:
            UsageError: the file is damaged.
        """
        path = self.folder / "spec.json"
        try:
            spec: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UsageError(
                f"{path} is damaged ({error}); run the sweep with its YAML file again after removing it"
            ) from error
        return spec

    def write_facts(self, facts: SweepFacts) -> None:
        write_checked(self.folder / "facts", canonical_json(facts.model_dump(mode="json")).encode())

    def read_facts(self) -> SweepFacts | None:
        """The facts as last written; None when there are none that are whole."""
        try:
            return SweepFacts.model_validate_json(read_checked(self.folder / "facts"))
        except (FileNotFoundError, Damaged, ValidationError):
            return None

    def write_addresses(self, addresses: Mapping[str, str]) -> None:
        """Notes where MLflow shows each trial, by trial key, and the sweep, by the empty key."""
        write_json(self.folder / "runs.json", {**self.read_addresses(), **addresses})

    def read_addresses(self) -> dict[str, str]:
        """What `write_addresses` noted last; empty when nothing was tracked."""
        try:
            addresses = json.loads((self.folder / "runs.json").read_text())
        except (OSError, ValueError):
            return {}
        return {str(key): str(address) for key, address in addresses.items()} if isinstance(addresses, dict) else {}

    def read_records(self) -> list[TrialRecord]:
        return list(self.ledger.read_all()[0].values())


def sweep_names(home: Path) -> list[str]:
    """Names of all sweeps under the home, sorted."""
    folder = home / "sweeps"
    return sorted(path.name for path in folder.iterdir() if (path / "spec.json").exists()) if folder.is_dir() else []


def find_sweep(home: Path, name: str) -> SweepHome:
    """The sweep called `name`.

    Raises:
        UsageError: there is none under this home.
    """
    if name not in (known := sweep_names(home)):
        raise UsageError(f"no sweep '{name}' under {home}{did_you_mean(name, known)}")
    return SweepHome(home, name)


def changed_keys(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Dotted keys at which two pieces of plain data differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {*old, *new}:
            yield from changed_keys(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from changed_keys(left, right, f"{place}[{number}]")
    elif old != new:
        yield place
