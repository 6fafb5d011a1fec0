"""Tables of texts: what is read from CSV and Parquet files, and what is wrong with files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.data.tables import read_table
from stillhouse.errors import UsageError


def _csv(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_csv_file_is_read_as_text(tmp_path: Path) -> None:
    """Quotes, line ends inside of them, a mark at the beginning of the file, numbers that keep their zeros, words like NA."""
    path = _csv(tmp_path, '\ufefftext,label,other\n"a ""b"", c\nd",01,x\nNA,1,\nnull,02,y\n')
    table = read_table(path, "text", "label")
    assert table.texts == ['a "b", c\nd', "NA", "null"]
    assert table.labels == ["01", "1", "02"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([3, 1]), ["3", "1"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
        (pa.array(["b", "a"], pa.large_string()), ["b", "a"]),
    ],
)
def test_a_parquet_file_has_labels_of_several_types(tmp_path: Path, labels: pa.Array, expected: list[str]) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"words": ["x", "y"], "class": labels}), path)
    table = read_table(path, "words", "class")
    assert (table.texts, table.labels) == (["x", "y"], expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,labels\na,b\n",
            r"has no column 'label'; did you mean 'labels'.*; it has text, labels: set dataset.options.label",
        ),
        ("text,label\na,b\n ,c\n,d\n", r"has empty texts in 2 rows \(2, 3\); fill them, or remove the rows"),
        ("text,label\na,\n", r"has an empty label in row 1; fill them"),
        ("text,label\n", "has no rows below its columns; add some"),
        ("text,label,text\na,b,c\n", "has several columns 'text'; rename all but one"),
        ("text,label\na,b\nc\n", r"cannot be read \(.*\); repair the file"),
        (b"text,label\na,b\ncaf\xe9,c\n", r"rows.csv is not UTF-8 \(line 3\); convert it"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_sentence(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        read_table(_csv(tmp_path, content), "text", "label")
    assert "\n" not in str(raised.value)


def test_a_column_of_other_values_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["x"], "label": [0.5]}), path)
    with pytest.raises(UsageError, match=r"column 'label' of .* must hold words or whole numbers, it holds double"):
        read_table(path, "text", "label")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(path, "text", "label")
