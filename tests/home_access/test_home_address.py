"""The address of a home: its mark, the nodes that share it, and the scratch folder of those that do not."""

import stat
from pathlib import Path

import pytest

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.home_address import (
    COMMON_VARIABLE,
    SCRATCH_VARIABLE,
    HomeAddress,
    scratch_base,
    scratch_folder,
    shared_home,
)


def test_a_node_shares_the_home_by_its_mark_and_not_by_its_path(tmp_path: Path) -> None:
    address = shared_home(tmp_path)
    assert shared_home(tmp_path) == address, "the mark stays"
    assert address.is_common
    assert not HomeAddress(path=str(tmp_path), mark="another", keeper="k").is_common
    assert not HomeAddress(path=str(tmp_path / "elsewhere"), mark=address.mark, keeper="k").is_common
    assert HomeAddress(path=str(tmp_path / "elsewhere")).is_common, "without a keeper every process shares the folder"


def test_a_node_that_must_not_use_the_homes_folder_does_not_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = shared_home(tmp_path)
    monkeypatch.setenv(COMMON_VARIABLE, "0")
    assert not address.is_common


def test_a_damaged_mark_is_replaced(tmp_path: Path) -> None:
    first = shared_home(tmp_path)
    (tmp_path / ".mark").write_text("half a ma")
    second = shared_home(tmp_path)
    assert second.mark != first.mark
    assert second.keeper == f"keeper-{second.mark}"
    assert shared_home(tmp_path) == second


def test_a_home_that_is_no_folder_is_one_sentence(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    with pytest.raises(InfrastructureError, match=r"cannot write into .*; choose another with --home"):
        shared_home(file)
    assert file.is_file(), "the user's file stays"


def test_a_scratch_folder_can_be_read_by_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "local"))
    folder = scratch_folder("abc")
    assert scratch_base() == tmp_path / "local"
    assert folder.parent == tmp_path / "local"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert scratch_folder("abc") == folder
    assert scratch_folder("abd") != folder


def test_a_scratch_folder_that_cannot_be_made_is_one_sentence_with_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "file").touch()
    monkeypatch.setenv(SCRATCH_VARIABLE, str(file))
    with pytest.raises(InfrastructureError, match=f"cannot make the scratch folder .*; set {SCRATCH_VARIABLE} on this node"):
        scratch_folder("abc")
