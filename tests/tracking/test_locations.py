from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stillhouse.tracking.locations import home_identity, locate


def test_the_default_store_is_an_absolute_file_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    location = locate(None, Path("home"))
    assert location.uri == f"sqlite:///{tmp_path}/home/mlflow.db"
    assert location.artifacts == f"file://{tmp_path}/home/mlartifacts"


def test_a_relative_database_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("sqlite:///here.db", tmp_path).uri == f"sqlite:///{tmp_path}/here.db"


def test_a_server_decides_where_artifacts_go(tmp_path: Path) -> None:
    assert locate("https://tracking.example", tmp_path).artifacts is None
    assert locate("https://tracking.example", tmp_path).address == ("tracking.example", 443)


def test_a_home_keeps_its_identity_and_shares_it_with_no_other(tmp_path: Path) -> None:
    first = home_identity(tmp_path / "a")
    assert home_identity(tmp_path / "a") == first
    assert home_identity(tmp_path / "b") != first


def test_a_page_loses_the_stores_own_credentials_and_nothing_else(tmp_path: Path) -> None:
    location = locate("postgresql://me:hush@db/mlflow", tmp_path)
    page = "<script>'://a@b'</script> postgresql://me:hush@db/mlflow, then me:hush@db"
    assert location.hide(page) == "<script>'://a@b'</script> postgresql://***@db/mlflow, then ***@db"


@pytest.mark.parametrize("folder", ["a:b@c", "me@work", "u:p@db"])
def test_a_path_with_an_at_sign_is_no_credential(folder: str, tmp_path: Path) -> None:
    for location in (
        locate(None, tmp_path / folder),
        locate(f"sqlite:////{folder}/mlflow.db", tmp_path),
        locate(f"http://[::1]:5000/{folder}", tmp_path),
        locate(f"http://host:5000/{folder}", tmp_path),
    ):
        text = f"{location.uri} and a:b@c, me@work"
        assert location.hide(text) == text


def test_credentials_are_hidden_where_they_are_a_word_and_not_within_another(tmp_path: Path) -> None:
    location = locate("postgresql://u:p@db/mlflow", tmp_path)
    assert location.hide("menu:p@ge u:p@db 'u:p@db' //u:p@db") == "menu:p@ge ***@db '***@db' //***@db"


def test_an_address_is_shown_without_its_credentials(tmp_path: Path) -> None:
    assert locate("postgresql://me:hush@db/mlflow", tmp_path).shown == "postgresql://***@db/mlflow"
    assert locate("https://hush@tracking.example", tmp_path).shown == "https://***@tracking.example"


@pytest.mark.parametrize("damage", [b"", b"\n", b"\xff\xfe", b"0123"])
def test_a_home_whose_identity_is_empty_or_damaged_gets_a_new_one(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "mlflow-home-id"
    path.write_bytes(damage)
    identity = home_identity(tmp_path)
    assert len(bytes.fromhex(identity)) == 8
    assert home_identity(tmp_path) == identity
    assert [each.read_bytes() for each in tmp_path.glob("mlflow-home-id.damaged-*")] == [damage]


def test_processes_that_open_a_new_home_at_once_agree_on_its_identity(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = {*pool.map(lambda _number: home_identity(tmp_path), range(64))}
    assert len(found) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow-home-id"]
