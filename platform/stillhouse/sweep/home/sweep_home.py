"""A sweep's folder on disk: its lock, the spec it was started with, its facts."""

import fcntl
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from stillhouse.durable import (
    NO_FILE,
    Damaged,
    canonical_json,
    json_bytes,
    make_folder,
    read_checked,
    read_json,
    set_aside,
    write_atomic,
    write_checked,
    write_json,
)
from stillhouse.errors import InfrastructureError, UnknownNameError, UsageError, did_you_mean
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.schema import SearchBudget
from stillhouse.spec.secret_masking import HIDDEN
from stillhouse.sweep.home.latency_file import MeasuredLatencies, read_latency_file, write_latency_file
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.user_paths import is_utf8, resolve_path, show_path

HOME_VARIABLE = "STILLHOUSE_HOME"

_FREE_TO_CHANGE = re.compile(
    r"(tracking|report|controls|trial_resources|max_concurrent_trials"
    r"|knowledge\.(way|ways|max_bytes)|teachers\.[^.]+\.(resources|replicas))([.\[].*)?"
)
"""Keys that may change between runs: where a sweep runs, where its results are stored, and what they are compared with. A
forced delivery mode gives the same results as `auto`."""
_DECIDES_NO_RESULT = (
    *("search.scheduler", "search.grace_epochs", "search.reduction_factor", "search.budget"),
    *(f"search.budget.{key}" for key in SearchBudget.model_fields),
)
"""Keys that decide which trials run and which are stopped early, but not the result of a trial that runs to its end."""
TRIALS_PER_METHOD = "search.trials_per_method"
_SUGGESTIONS = TypeAdapter(dict[str, dict[str, Any]])
_LATENCIES, _EXPORTED = "latencies.json", "exported_latencies.json"
_ADDRESSES = TypeAdapter(dict[str, str])
_LOCK_TIMEOUT_S, _LOCK_PAUSE_S = 0.5, 0.02
"""How long to wait for the lock: `is_running` also holds it, for a moment."""


def resolve_home(flag: str | Path | None = None) -> Path:
    """The absolute home: the flag, else STILLHOUSE_HOME, else ~/.stillhouse.

    Raises:
        UsageError: there is no such path, or its name is not UTF-8.
    """
    home = resolve_path(flag or os.environ.get(HOME_VARIABLE) or "~/.stillhouse", "the home")
    if not is_utf8(home):
        raise UsageError(f"the home {show_path(home)} has a name that is not UTF-8, so it cannot be recorded; choose another")
    return home


class SweepHome:
    """The folder of one sweep under the home.

    Layout: `spec.json`, `facts` and `ledger/*.record` (checked files), `ledger/aside/` (records of trials that ran again),
    `students/*.safetensors`, `outputs/*.safetensors` (what winners return for the test split), `trials/` with checkpoints of
    running trials, `latencies.json`, `exported_latencies.json`, `suggestions`, `runs.json` (addresses in MLflow), `report/`;
    `lock`, `stop` (a request to end) and `state.json` of the driver.
    """

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        self.folder = home / "sweeps" / name
        self.ledger = Ledger(self.folder / "ledger")
        self.report = self.folder / "report"
        self.stop_request = self.folder / "stop"
        self._started = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the sweep's lock for one driver.

        Raises:
            InfrastructureError: another driver holds it, or the folder cannot be written.
        """
        path = self.folder / "lock"
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                make_folder(self.folder)
                if os.path.lexists(path) and not path.is_file():
                    set_aside(path)
                file = path.open("wb")
            except OSError as error:
                raise InfrastructureError(
                    f"cannot write the sweep's folder {self.folder}: {error.strerror}; choose another with --home"
                ) from error
            with file:
                if self._take(file):
                    yield
                    return
            if time.monotonic() > deadline:
                home = shlex.quote(str(self.home))
                raise InfrastructureError(
                    f"another process already runs sweep '{self.name}'; wait for it, or stop it with: "
                    f"stillhouse stop {self.name} --home {home}"
                )
            time.sleep(_LOCK_PAUSE_S)

    def _take(self, lock: IO[bytes]) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that held it may have removed the folder.
            return os.fstat(lock.fileno()).st_ino == (self.folder / "lock").stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            return False

    def is_running(self) -> bool:
        """Whether a driver runs the sweep."""
        try:
            with (self.folder / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in NO_FILE:
                return False
            raise
        return False

    @property
    def is_removed(self) -> bool:
        """Whether the folder was removed since `write_spec`; workers may have created parts of it again."""
        return self._started and not os.path.lexists(self._spec_file)

    def unwritable_folder(self) -> Path | None:
        """The first folder of the sweep in which this process cannot create files; None if it can in all that exist."""
        parts = (self.folder, self.ledger.folder, self.folder / "students", self.folder / "trials", self.report)
        return next((each for each in parts if each.is_dir() and not os.access(each, os.W_OK | os.X_OK)), None)

    def write_spec(
        self,
        spec: Mapping[str, Any],
        *,
        may_change: Collection[str] = (),
        complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda stored: stored,
    ) -> None:
        """Stores the spec in the sweep's first run, and compares later runs with it.

        Args:
            may_change: keys that may differ in addition to those that affect no result.
            complete: adds the defaults of keys that did not exist when the stored spec was written.

        Raises:
            UsageError: the sweep has trials, and a key that affects results differs; the message names it.
        """
        damaged = self._damage_of_spec() is not None
        stored = self.spec_as_begun()
        if stored is not None:
            stored = complete(stored)
            free = {*may_change, *_DECIDES_NO_RESULT}
            changed = sorted(
                key for key in changed_keys(stored, spec) if key not in free and not _FREE_TO_CHANGE.fullmatch(key)
            )
            if changed and self._has_begun:
                raise UsageError(
                    f"sweep '{self.name}' was started with another spec: {', '.join(changed)} changed; {_remedy(changed)}"
                )
            if changed:
                for outdated in ("facts", _LATENCIES, "suggestions"):
                    (self.folder / outdated).unlink(missing_ok=True)
        if damaged:
            set_aside(self._spec_file)
        # A tracking URI may contain a password.
        write_json(self._spec_file, spec, private=True)
        self._started = True

    @property
    def _has_begun(self) -> bool:
        """Whether any trial has a record or a checkpoint."""
        return any(self.ledger.folder.rglob("*.record")) or any((self.folder / "trials").glob("*/checkpoint"))

    def read_spec(self) -> dict[str, Any] | None:
        """The stored spec; None when the sweep never started. Where the file is damaged, the spec of the recorded facts.

        Raises:
            UsageError: the file is damaged, and the facts do not hold the whole spec.
        """
        if (damage := self._damage_of_spec()) is None:
            spec: dict[str, Any] | None = read_json(self._spec_file) if os.path.lexists(self._spec_file) else None
            return spec
        found = self._spec_of_facts()
        # Facts hold no secrets, such as a password in the address of a tracking server.
        if found is not None and HIDDEN not in canonical_json(found):
            return found
        raise UsageError(f"{damage}; run the sweep with its YAML file again, which replaces it")

    def spec_as_begun(self) -> dict[str, Any] | None:
        """The stored spec, to compare with; that of the facts (without secrets) if its file is damaged; None without both."""
        return self.read_spec() if self._damage_of_spec() is None else self._spec_of_facts()

    def _spec_of_facts(self) -> dict[str, Any] | None:
        facts = self.read_facts()
        return dict(facts.spec) if facts is not None else None

    def _damage_of_spec(self) -> Damaged | None:
        """What is wrong with the file of the spec; None if it is whole, or if there is none."""
        try:
            spec = read_json(self._spec_file)
            if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
                return Damaged(f"{self._spec_file} is damaged (it holds no spec)")
        except FileNotFoundError:
            return None
        except Damaged as error:
            return Damaged(f"{self._spec_file} is damaged ({error})")
        return None

    @property
    def _spec_file(self) -> Path:
        return self.folder / "spec.json"

    def read_spec_dict(self) -> dict[str, Any]:
        """The stored spec.

        Raises:
            UsageError: the sweep never started, or the file is damaged.
        """
        spec = self.read_spec()
        if spec is None:
            raise UsageError(f"sweep '{self.name}' was never started")
        return spec

    def take_over(self, origin: "SweepHome", record: TrialRecord) -> TrialRecord:
        """Copies a record of another sweep of this home into this one, with its weights. Returns the record as stored."""
        if record.weights is not None:
            source, target = origin.folder / record.weights, self.folder / record.weights
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                # Weights never change after they are written: both sweeps can share one file.
                target.hardlink_to(source)
            except FileNotFoundError:
                record = record.model_copy(update={"weights": None, "weights_hash": None})
            except OSError:
                write_atomic(target, source.read_bytes())
        self.ledger.write(record)
        return record

    def fill_log_bytes(self) -> int:
        """The present length of the home's log of filled views, in bytes."""
        log = self.home / "knowledge" / "fills.jsonl"
        return log.stat().st_size if log.is_file() else 0

    def remove(self) -> None:
        """Removes the sweep's folder. Teachers and knowledge are stored elsewhere. The caller holds the lock.

        Where the folder is a link, the link is removed; what it leads to may belong to another home.

        Raises:
            InfrastructureError: a part of it cannot be removed.
        """
        if self.folder.is_symlink():
            self.folder.unlink()
            return
        # Renamed first: a partially removed sweep must not look like a sweep.
        removed = self.folder.with_name(f".removed-{self.name}-{os.getpid()}")
        try:
            self.folder.rename(removed)
            shutil.rmtree(removed)
        except OSError as error:
            raise InfrastructureError(f"cannot remove {error.filename or self.folder}: {error.strerror or error}") from error

    def write_facts(self, facts: SweepFacts) -> None:
        write_checked(self.folder / "facts", json_bytes(canonical_json(facts.model_dump(mode="json"))))

    def read_facts(self) -> SweepFacts | None:
        """The facts as last written; None when they are missing or damaged."""
        try:
            return SweepFacts.model_validate_json(read_checked(self.folder / "facts"))
        except (FileNotFoundError, Damaged, ValidationError):
            return None

    def write_addresses(self, addresses: Mapping[str, str]) -> None:
        """Stores the addresses in MLflow: of each trial by its key, of the sweep by the empty key."""
        write_json(self.folder / "runs.json", {**self.read_addresses(), **addresses})

    def write_suggestions(self, suggestions: Mapping[str, Mapping[str, Any]]) -> None:
        """Stores the suggestions of an adaptive search, so that a later run need not compute them again."""
        write_checked(self.folder / "suggestions", json_bytes(canonical_json(suggestions)))

    def read_suggestions(self) -> dict[str, dict[str, Any]]:
        """What `write_suggestions` stored; empty when it is missing or damaged, which costs time and nothing else."""
        try:
            return _SUGGESTIONS.validate_json(read_checked(self.folder / "suggestions"))
        except (OSError, Damaged, ValidationError):
            return {}

    def write_latencies(self, latencies: Mapping[str, Mapping[str, float]], place: str = "") -> None:
        """Stores the latencies of students and teachers, by `student_key`, and where all of them were measured."""
        write_latency_file(self.folder / _LATENCIES, latencies, place)

    def read_latencies(self) -> dict[str, dict[str, float]]:
        """What `write_latencies` stored; empty when nothing was measured, or the file is damaged."""
        return read_latency_file(self.folder / _LATENCIES).networks

    def latency_place(self) -> str:
        """Where all latencies were measured, as `provenance.place_of`; empty if it is not recorded."""
        return read_latency_file(self.folder / _LATENCIES).place

    def write_exported_latencies(self, measured: MeasuredLatencies) -> None:
        """Stores the latencies of winners' exported forms, by `student_key`."""
        write_latency_file(self.folder / _EXPORTED, measured.networks, measured.place)

    def read_exported_latencies(self) -> MeasuredLatencies:
        """What `write_exported_latencies` stored; empty when nothing was measured, or the file is damaged."""
        return read_latency_file(self.folder / _EXPORTED)

    def read_addresses(self) -> dict[str, str]:
        """What `write_addresses` stored; empty when nothing was tracked, or the file is damaged."""
        try:
            return _ADDRESSES.validate_python(read_json(self.folder / "runs.json"))
        except (OSError, Damaged, ValidationError):
            return {}

    def drop_checkpoints(self, keys: Iterable[str]) -> None:
        """Removes checkpoints of trials that have ended: a worker that dies between its record and that leaves its own."""
        for key in keys:
            shutil.rmtree(self.folder / "trials" / key, ignore_errors=True)

    def read_records(self) -> list[TrialRecord]:
        return list(self.ledger.read_all()[0].values())


def sweep_names(home: Path) -> list[str]:
    """Names of all sweeps under the home, sorted."""
    folder = home / "sweeps"
    if not folder.is_dir():
        return []
    return sorted(
        path.name for path in folder.iterdir() if not path.name.startswith(".") and os.path.lexists(path / "spec.json")
    )


def find_sweep(home: Path, name: str) -> SweepHome:
    """The sweep called `name`.

    Raises:
        UsageError: there is none under this home.
    """
    if name not in (known := sweep_names(home)):
        raise UnknownNameError(f"no sweep '{name}' under {home}{did_you_mean(name, known)}")
    return SweepHome(home, name)


def extended_spec(spec: Mapping[str, Any], trials_per_method: int) -> dict[str, Any]:
    """The stored spec with more trials of each method; the trials that it has remain the same.

    Raises:
        UsageError: the algorithm has no number of trials, or it has more than that already.
    """
    search = dict(spec.get("search", {}))
    section, _, key = TRIALS_PER_METHOD.partition(".")
    if search.get("algorithm") == "grid":
        raise UsageError(
            f"a grid runs every combination, so {TRIALS_PER_METHOD} has no effect; change the spec and use --fork NAME"
        )
    if trials_per_method < search.get(key, 0):
        raise UsageError(f"--trials must be >= {search[key]}, which the sweep has, got {trials_per_method}")
    return {**spec, section: {**search, key: trials_per_method}}


def _remedy(changed: Sequence[str]) -> str:
    if changed == [TRIALS_PER_METHOD]:
        return "use `stillhouse extend NAME --trials N` for more trials, or `stillhouse resume NAME` to continue unchanged"
    return "continue under a new name with --fork NAME, or undo the change to continue this sweep"


def changed_keys(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys at which two pieces of plain data differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {*old, *new}:
            yield from changed_keys(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from changed_keys(left, right, f"{prefix}[{number}]")
    elif old != new:
        yield prefix
