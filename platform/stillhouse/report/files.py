"""The files of a report, each written whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stillhouse.durable import write_atomic
from stillhouse.report import formatting as wording
from stillhouse.report.trials_table import Column, csv_bytes, parquet_bytes


@dataclass(frozen=True)
class ReportFiles:
    """Where the report lies, and what it answered."""

    page: Path
    table: Path
    figure: Path
    csv: Path
    best: tuple[dict[str, Any], ...] = ()


def write_files(
    folder: Path,
    table: pd.DataFrame,
    columns: Sequence[Column],
    about: Mapping[str, Any],
    still: bytes,
    page: str,
    best: Sequence[dict[str, Any]],
) -> ReportFiles:
    """Writes the four files, the page last; `about` goes into the schema of the Parquet file.

    Raises:
        OSError: the disk is full or the folder is not writable; what lay there before is as it was.
    """
    files = ReportFiles(
        page=folder / "report.html",
        table=folder / "tradeoff.parquet",
        figure=folder / "tradeoff.png",
        csv=folder / "tradeoff.csv",
        best=tuple(best),
    )
    parquet = parquet_bytes(table, columns, wording.redacted_tree(json.loads(json_text(about))))
    for path, payload in (
        (files.table, parquet),
        (files.csv, csv_bytes(table)),
        (files.figure, still),
        (files.page, page.encode()),
    ):
        write_atomic(path, payload)
    return files


def json_text(value: Any) -> str:
    return json.dumps(value, default=str)
