"""Tables of texts and labels in CSV or Parquet files, read by pyarrow."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError, describe_error, did_you_mean, printable

SUFFIXES = (".csv", ".parquet")
_READ_AT_ONCE = 1 << 20
_MANY = 5


@dataclass(frozen=True)
class Table:
    """Rows of one file.

    Attributes:
        texts: none is empty.
        labels: as text, however the file holds them; none is empty.
    """

    path: Path
    texts: Sequence[str]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def only(self, rows: Sequence[int]) -> "Table":
        return Table(self.path, [self.texts[row] for row in rows], [self.labels[row] for row in rows])


def read_table(path: Path, text: str, label: str) -> Table:
    """The texts and labels of a file.

    Args:
        text: the column with the texts.
        label: the column with the labels: words, whole numbers, or true and false.

    Raises:
        UsageError: the file is damaged or is not UTF-8, a column is missing or holds something else, or a text or a label is
            empty.
    """
    import pyarrow

    try:
        columns = _csv_columns(path, text, label) if path.suffix == ".csv" else _parquet_columns(path, text, label)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} cannot be read ({describe_error(error)}); repair the file") from error
    texts, labels = (_words(path, name, column) for name, column in zip((text, label), columns, strict=True))
    if not texts:
        raise UsageError(f"{path} has no rows below its columns; add some")
    for what, values in (("text", texts), ("label", labels)):
        if empty := [number for number, value in enumerate(values, start=1) if not value.strip()]:
            raise UsageError(f"{path} has {_counted(empty, what)}; fill them, or remove the rows")
    return Table(path, texts, labels)


def _counted(rows: Sequence[int], what: str) -> str:
    shown = ", ".join(map(str, rows[:_MANY])) + (", …" if len(rows) > _MANY else "")
    return f"an empty {what} in row {shown}" if len(rows) == 1 else f"empty {what}s in {len(rows)} rows ({shown})"


def _csv_columns(path: Path, text: str, label: str) -> tuple[Any, Any]:
    from pyarrow import csv, string

    _check_utf8(path)
    parsing = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(path, parse_options=parsing) as reader:
        _check_columns(path, reader.schema.names, text, label)
    # As text, so that a label "01" stays what it is and a text "NA" is one.
    converting = csv.ConvertOptions(
        column_types={text: string(), label: string()}, include_columns=[text, label], strings_can_be_null=False
    )
    table = csv.read_csv(path, parse_options=parsing, convert_options=converting)
    return table.column(text), table.column(label)


def _parquet_columns(path: Path, text: str, label: str) -> tuple[Any, Any]:
    from pyarrow import parquet

    _check_columns(path, parquet.read_schema(path).names, text, label)
    table = parquet.read_table(path, columns=[text, label])
    return table.column(text), table.column(label)


def _check_columns(path: Path, names: Sequence[str], text: str, label: str) -> None:
    for option, name in (("text", text), ("label", label)):
        if name not in names:
            has = ", ".join(printable(each) for each in names)
            hint = did_you_mean(name, names)
            raise UsageError(f"{path} has no column '{name}'{hint}; it has {has}: set dataset.options.{option}")
        if list(names).count(name) > 1:
            raise UsageError(f"{path} has several columns '{name}'; rename all but one")


def _check_utf8(path: Path) -> None:
    """Reads the file once, since the place of a wrong byte tells more than that there is one."""
    decoder, lines = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        while True:
            part = file.read(_READ_AT_ONCE)
            try:
                lines += decoder.decode(part, final=not part).count("\n")
            except UnicodeDecodeError as error:
                lines += error.object[: error.start].count(b"\n")
                raise UsageError(f"{path} is not UTF-8 (line {lines}); convert it, for example by iconv") from error
            if not part:
                return


def _words(path: Path, name: str, column: Any) -> list[str]:
    """A column as text; missing values are empty."""
    import pyarrow

    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    types = pyarrow.types
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind) or types.is_boolean(kind)):
        raise UsageError(f"column '{name}' of {path} must hold words or whole numbers, it holds {kind}")
    words: list[str] = column.cast(pyarrow.string()).fill_null("").to_pylist()
    return words
