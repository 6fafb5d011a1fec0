"""The division of a view into parts and blocks, and the lines of its journals."""

from pathlib import Path

import numpy as np
import pytest

from stillhouse.durable import Damaged, write_checked
from stillhouse.knowledge.layout import JournalReader, Layout, Stretch, allocate_part, map_part, part_stamp

MIB = 2**20


def make(rows: int, *shape: int, dtype: str = "float32") -> Layout:
    return Layout.make(identity={"view": 0}, rows=rows, shape=shape, dtype=dtype)


def test_a_small_view_is_one_part_of_one_block() -> None:
    layout = make(10, 5)
    assert (layout.row_bytes, layout.num_bytes, layout.num_parts) == (20, 200, 1)
    assert list(layout.blocks()) == [(0, 0, 10)]


def test_blocks_have_32_mebibytes_and_parts_a_gibibyte() -> None:
    # A row of 1 MiB: 32 rows a block, 1024 rows a part.
    layout = make(2500, MIB // 4)
    assert (layout.block_rows, layout.part_rows, layout.num_parts) == (32, 1024, 3)
    assert [layout.part_stretch(part) for part in range(3)] == [(0, 1024), (1024, 2048), (2048, 2500)]
    blocks = list(layout.blocks())
    assert len(blocks) == 32 + 32 + 15
    assert blocks[-1] == (2, 2048 + 14 * 32, 2500)


def test_blocks_cover_every_row_once_and_no_block_is_in_two_parts() -> None:
    layout = make(3001, MIB // 8)
    rows = [row for _, first, last in layout.blocks() for row in range(first, last)]
    assert rows == list(range(3001))
    for part, first, last in layout.blocks():
        begin, end = layout.part_stretch(part)
        assert begin <= first < last <= end


def test_a_row_larger_than_a_block_is_a_block_of_its_own() -> None:
    assert make(3, 40 * MIB, dtype="uint8").block_rows == 1


def test_a_layout_survives_its_file_and_other_versions_are_refused(tmp_path: Path) -> None:
    layout = Layout.make(identity={"view": 1, "teacher": {"weights": "x"}}, rows=7, shape=(2, 3), dtype="float16", order=[5, 0])
    write_checked(tmp_path / "layout", layout.document(checksums=["a"]))
    read, content = Layout.read(tmp_path / "layout")
    assert read == layout
    assert content["checksums"] == ["a"]
    write_checked(tmp_path / "layout", layout.document().replace(b'"version":', b'"version":9'))
    with pytest.raises(Damaged, match="was written by store version 9"):
        Layout.read(tmp_path / "layout")


@pytest.mark.parametrize("rows", [[4, 5, 6], [6, 4, 5], [2], [], list(range(0, 1000, 7))])
def test_a_stretch_survives_its_line(rows: list[int]) -> None:
    stretch = Stretch(np.array(rows, dtype=np.int64), "sum", "token")
    parsed = Stretch.parse(stretch.line().encode(), 1000)
    assert parsed is not None
    assert (parsed.rows.tolist(), parsed.checksum, parsed.token) == (rows, "sum", "token")


def test_no_changed_or_truncated_line_is_a_stretch() -> None:
    line = Stretch(np.array([3, 1, 2]), "sum").line().encode()
    for place in range(len(line) - 1):
        assert Stretch.parse(line[:place], 10) is None
        changed = bytearray(line)
        changed[place] ^= 1
        assert Stretch.parse(bytes(changed), 10) is None


def test_a_line_with_rows_that_do_not_exist_is_no_stretch() -> None:
    line = Stretch(np.array([3, 4]), "sum").line().encode()
    assert Stretch.parse(line, 4) is None
    assert Stretch.parse(line, 5) is not None


def test_a_journal_is_read_line_by_line_as_it_grows(tmp_path: Path) -> None:
    first, second = (Stretch(np.array([row]), "sum").line() for row in (0, 1))
    reader = JournalReader(tmp_path, 2)
    assert list(reader.fresh()) == []
    (tmp_path / "journal-a").write_text(first + second[:10])
    assert [stretch.rows.tolist() for stretch in reader.fresh()] == [[0]]
    (tmp_path / "journal-a").write_text(first + second)
    assert [stretch.rows.tolist() for stretch in reader.fresh()] == [[1]]
    assert list(reader.fresh()) == []


def test_an_allocated_part_is_a_whole_arrow_file_of_zeros(tmp_path: Path) -> None:
    layout = make(6, 3)
    allocate_part(tmp_path / "part", layout, 0)
    values, offset = map_part(tmp_path / "part", layout, 0)
    assert values.tolist() == [[0.0] * 3] * 6
    with (tmp_path / "part").open("r+b") as file:
        file.seek(offset + 4 * 3 * 2)
        file.write(np.array([1.5], "<f4").tobytes())
    assert map_part(tmp_path / "part", layout, 0)[0][2].tolist() == [1.5, 0.0, 0.0]


def test_a_part_of_another_layout_is_damaged(tmp_path: Path) -> None:
    allocate_part(tmp_path / "part", make(6, 3), 0)
    for other in (make(6, 4), make(5, 3), make(6, 3, dtype="float16")):
        with pytest.raises(Damaged):
            map_part(tmp_path / "part", other, 0)


def test_the_stamp_of_a_part_changes_when_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"abc")
    stamp = part_stamp(path)
    assert part_stamp(path) == stamp
    path.write_bytes(b"abcd")
    assert part_stamp(path) != stamp
