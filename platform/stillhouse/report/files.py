"""The files of a report, each written whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.durable import write_atomic
from stillhouse.report.trials_table import TrialsTable, csv_bytes, parquet_bytes
from stillhouse.spec.secret_masking import mask_data


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report, and its answers as plain data."""

    page: Path
    table: Path
    figure: Path
    csv: Path
    best: tuple[dict[str, Any], ...] = ()


def write_files(
    folder: Path,
    table: TrialsTable,
    about: Mapping[str, Any],
    still: bytes,
    page: str,
    best: Sequence[dict[str, Any]],
) -> ReportFiles:
    """Writes the four files, the page last; `about` goes into the schema of the Parquet file.

    Raises:
        OSError: the disk is full or the folder is not writable; the files that were there before are unchanged.
    """
    files = ReportFiles(
        page=folder / "report.html",
        table=folder / "tradeoff.parquet",
        figure=folder / "tradeoff.png",
        csv=folder / "tradeoff.csv",
        best=tuple(best),
    )
    parquet = parquet_bytes(table, mask_data(json.loads(json_text(about))))
    for path, payload in (
        (files.table, parquet),
        (files.csv, csv_bytes(table.frame)),
        (files.figure, still),
        (files.page, page.encode()),
    ):
        write_atomic(path, payload)
    return files


def json_text(value: Any) -> str:
    """JSON of plain data; what JSON has no form for becomes text."""
    return json.dumps(value, default=str)
