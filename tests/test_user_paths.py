"""Files that a user names are regular files of bounded size."""

import os
from pathlib import Path

import pytest

from stillhouse.errors import UsageError
from stillhouse.user_paths import is_utf8, read_regular, resolve_path, show_path


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"12345")
    assert read_regular(tmp_path / "text", "the text", 5) == b"12345"
    with pytest.raises(UsageError, match=r"the text .* has 5 bytes; at most 4 are read"):
        read_regular(tmp_path / "text", "the text", 4)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a directory"), (Path("/dev/null"), "a device")):
        with pytest.raises(UsageError, match=f"it is {what}"):
            read_regular(path, "the text", 5)
    for path in (tmp_path / "none", tmp_path / ("n" * 300), Path("a\0b")):
        with pytest.raises(UsageError, match=r"the text .* cannot be read"):
            read_regular(path, "the text", 5)


def test_a_path_of_an_unknown_user_and_a_loop_of_links_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, reason in (("~nosuchuser/x", "no such user"), (tmp_path / "loop" / "x", "symbolic links"), ("a\0b", "zero byte")):
        with pytest.raises(UsageError, match=f"the home .* cannot be used: .*{reason}"):
            resolve_path(path, "the home")


def test_every_path_can_be_shown_in_one_line_of_bounded_length() -> None:
    for raw in (b"caf\xe9", b"two\nlines", b"\x1b[31mred", b"x" * 5000):
        shown = show_path(os.fsdecode(raw))
        assert shown.isprintable()
        assert len(shown) <= 301
        shown.encode()
    assert show_path("/home/é/ein Ordner") == "/home/é/ein Ordner"


def test_paths_are_told_apart_by_their_bytes() -> None:
    assert is_utf8("/home/é")
    assert not is_utf8(os.fsdecode(b"/home/\xe9"))
