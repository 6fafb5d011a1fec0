"""The ledger: one durable, checked file per trial that will not run again. Report and MLflow are derived from it."""

import itertools
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from stillhouse.durable import Damaged, fsync_folder, make_folder, read_checked, write_checked
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
        """Writes the record durably; from then on the trial does not run again.

        Raises:
            OSError: the disk is full; nothing was written.
        """
        write_checked(self.path(record.trial.key), record.model_dump_json().encode())

    def read(self, key: str) -> TrialRecord | None:
        """The record of the trial; None when it is missing or damaged."""
        try:
            return TrialRecord.model_validate_json(read_checked(self.path(key)))
        except (FileNotFoundError, Damaged, ValidationError):
            return None

    def set_aside(self, key: str) -> Path:
        """Moves the record to the folder `aside`, so that its trial runs again. Returns its new path."""
        aside = self.folder / "aside"
        make_folder(aside)
        target = next(path for n in itertools.count(1) if not os.path.lexists(path := aside / f"{key}.{n}{_SUFFIX}"))
        self.path(key).rename(target)
        fsync_folder(aside)
        fsync_folder(self.folder)
        return target

    def keys(self) -> Iterator[str]:
        """Keys of all records, damaged ones included, sorted."""
        if self.folder.is_dir():
            yield from sorted(path.stem for path in self.folder.glob(f"*{_SUFFIX}"))

    def read_all(self) -> tuple[dict[str, TrialRecord], list[str]]:
        """All intact records by key, and the keys of damaged ones, whose trials run again."""
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
