from pathlib import Path
from string import ascii_letters, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.tracking.locations import home_identity, locate, mask_secrets, mask_uri

_words = st.text(ascii_letters + digits + "!$%+-_.~:", min_size=8)


@given(password=_words, user=st.text(ascii_letters, min_size=1))
def test_a_password_never_survives_masking(password: str, user: str) -> None:
    text = f"API request to https://{user}:{password}@tracking.example:5000/api failed"
    masked = mask_uri(text)
    assert password not in masked
    assert "tracking.example:5000/api failed" in masked


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:hush@db/mlflow", "postgresql://***@db/mlflow"),
        (
            "postgresql+psycopg2://db/x?sslpassword=hush&sslmode=require",
            "postgresql+psycopg2://db/x?sslpassword=***&sslmode=require",
        ),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://host/?access_token=hush", "https://host/?access_token=***"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_only_the_secret_parts_of_an_address_are_hidden(uri: str, shown: str) -> None:
    assert mask_uri(uri) == shown


def test_secrets_are_hidden_at_any_depth_of_a_spec() -> None:
    spec = {"tracking": {"uri": "http://me:hush@host"}, "dataset": {"options": [{"api_key": "hush", "keyed": 1}]}, "token": ""}
    assert mask_secrets(spec) == {
        "tracking": {"uri": "http://***@host"},
        "dataset": {"options": [{"api_key": "***", "keyed": 1}]},
        "token": "",
    }


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


def test_masking_takes_linear_time_on_long_words() -> None:
    # 4 million characters take minutes when every position is tried against all that follow.
    assert mask_uri("x" * 4_000_000 + "?" * 100_000).startswith("xxx")


def test_a_page_loses_the_stores_own_credentials_and_nothing_else(tmp_path: Path) -> None:
    location = locate("postgresql://me:hush@db/mlflow", tmp_path)
    page = "<script>'://a@b'</script> postgresql://me:hush@db/mlflow, then me:hush@db"
    assert location.hide(page) == "<script>'://a@b'</script> postgresql://***@db/mlflow, then ***@db"
