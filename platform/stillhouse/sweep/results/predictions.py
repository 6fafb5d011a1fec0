"""What the winners of a sweep returned for each test sample, as one Parquet file from which people compute what we do not."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from stillhouse.durable import fsync_folder, make_folder, move_into_place
from stillhouse.report import sweep_winners
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.execution.examination import OUTPUTS, outputs_file
from stillhouse.sweep.home.sweep_home import SweepHome

FILE = "predictions.parquet"
MAX_BYTES = 1 << 30
"""Of all outputs together; more are not copied into one file."""


def write_predictions(
    facts: SweepFacts, records: Sequence[TrialRecord], targets: NDArray[Any], sweep_home: SweepHome
) -> str | None:
    """Writes the outputs of the winners' reported trials into the report's folder, one row per trial and test sample.

    Columns: `trial`, `method`, `student`, `seed`, `sample` (the place in the test split), `target`, and one for each output of
    the student, flattened to a list of float32.

    Args:
        targets: of the test split, [N] or [N, K].

    Returns:
        why no file was written, as a sentence; None if it was, or if no winner has stored outputs.

    Raises:
        OSError: the disk is full or the folder is not writable; an older file is unchanged.
    """
    winners = {record.trial.key: record for each in sweep_winners(facts, records) for record in each.reported}
    stored = {key: path for key in sorted(winners) if (path := sweep_home.folder / outputs_file(key)).is_file()}
    if (size := sum(path.stat().st_size for path in stored.values())) > MAX_BYTES:
        return (
            f"predictions of the {len(stored)} winners are not copied into one file, which would have {size / 1e9:.1f} GB; "
            f"they are in {sweep_home.folder / OUTPUTS}"
        )
    if stored:
        make_folder(sweep_home.report)
        _write(sweep_home.report / FILE, _tables([winners[key] for key in stored], list(stored.values()), targets))
    return None


def drop_outputs(facts: SweepFacts, records: Sequence[TrialRecord], sweep_home: SweepHome) -> None:
    """Removes the outputs of trials that are no winners: of a complete sweep nobody reads them."""
    winners = {outputs_file(record.trial.key).name for each in sweep_winners(facts, records) for record in each.reported}
    folder = sweep_home.folder / OUTPUTS
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in winners:
            path.unlink(missing_ok=True)


def _tables(records: Sequence[TrialRecord], files: Sequence[Path], targets: NDArray[Any]) -> Iterator[pa.Table]:
    """One table for each trial whose file holds an output for each sample."""
    for record, file in zip(records, files, strict=True):
        try:
            outputs = load_file(file)
        except (OSError, SafetensorError):
            continue
        # The others are of an earlier test split, or of the first samples only.
        outputs = {name: value for name, value in outputs.items() if len(value) == len(targets)}
        if not outputs:
            continue
        trial, count = record.trial, len(targets)
        columns: dict[str, Any] = {
            "trial": pa.array([trial.key] * count, pa.string()),
            "method": pa.array([trial.method] * count, pa.string()),
            "student": pa.array([trial.student.name] * count, pa.string()),
            "seed": pa.array(np.full(count, trial.seed, np.int64)),
            "sample": pa.array(np.arange(count, dtype=np.int64)),
            "target": pa.array(targets) if targets.ndim == 1 else _lists(targets),
        }
        yield pa.table(columns | {name: _lists(value.astype(np.float32)) for name, value in sorted(outputs.items())})


def _lists(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    flat = rows.reshape(len(rows), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    writer: pq.ParquetWriter | None = None
    try:
        with beside.open("xb") as file:
            for table in tables:
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
            if writer is None:
                return
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        move_into_place(beside, path)
        fsync_folder(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
