"""The ledger: one durable, checked file per finished trial. The report and MLflow are views of it."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from stillhouse.durable import Damaged, fsync_folder, read_checked, write_checked
from stillhouse.spec.records import TrialRecord

_SUFFIX = ".record"


class Ledger:
    """The records under one folder, by trial key.

    Args:
        folder: an absolute path that every worker can reach.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: TrialRecord) -> None:
        """Writes the record durably; from here on the trial never runs again.

        Raises:
            OSError: the disk is full; nothing was written.
        """
        write_checked(self.path(record.trial.key), record.model_dump_json().encode())

    def read(self, key: str) -> TrialRecord | None:
        """The record of the trial; None when there is none, or none that is whole."""
        try:
            return TrialRecord.model_validate_json(read_checked(self.path(key)))
        except (FileNotFoundError, Damaged, ValidationError):
            return None

    def remove(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def set_aside(self, key: str) -> Path:
        """Moves the record away, so that its trial runs again. Returns where it lies from now on."""
        aside = self.folder / "aside"
        aside.mkdir(exist_ok=True)
        target = next(path for n in itertools.count(1) if not (path := aside / f"{key}.{n}{_SUFFIX}").exists())
        self.path(key).rename(target)
        fsync_folder(aside)
        fsync_folder(self.folder)
        return target

    def keys(self) -> Iterator[str]:
        """Keys of all records, whole or not, sorted."""
        if self.folder.is_dir():
            yield from sorted(path.stem for path in self.folder.glob(f"*{_SUFFIX}"))

    def read_all(self) -> tuple[dict[str, TrialRecord], list[str]]:
        """All whole records by key, and the keys of those that are damaged: their trials run again."""
        whole: dict[str, TrialRecord] = {}
        damaged: list[str] = []
        for key in self.keys():
            record = self.read(key)
            if record is None or record.trial.key != key:
                damaged.append(key)
            else:
                whole[key] = record
        return whole, damaged

    def path(self, key: str) -> Path:
        """The file of the trial's record."""
        return self.folder / f"{key}{_SUFFIX}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
