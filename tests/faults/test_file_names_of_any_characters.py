"""Folders and files whose names have any characters: homes with their MLflow stores, image folders, packs and specs."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.utils.file_utils import local_file_uri_to_path
from PIL import Image
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.data.datasets import load_dataset
from stillhouse.data.packing import pack_folder
from stillhouse.data.packs import Pack
from stillhouse.errors import SpecError, UsageError
from stillhouse.spec.load import load_spec
from stillhouse.sweep.home.sweep_home import resolve_home
from stillhouse.tracking.locations import locate, sqlite_uri
from stillhouse.tracking.store import open_client
from stillhouse.tracking.store import settings as mlflow_settings

# Every character of a file name on Linux but the two that cannot occur; surrogates are names that are no UTF-8.
CHARACTERS = st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
NAMES = st.text(CHARACTERS | st.sampled_from("%?#&'\"\n \\4"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
STRANGE = ["a%41b %?#&=;%25 é雪", "new\nline\t'\" \\ *|<>:@$!^~{}[](),+"]
NOT_UTF_8 = os.fsdecode(b"caf\xe9")


@given(NAMES)
def test_sqlalchemy_reads_the_path_of_every_name(name: str) -> None:
    path = Path("/somewhere") / name / "mlflow.db"
    assert sqlalchemy.make_url(sqlite_uri(path)).database == str(path)
    assert not sqlalchemy.make_url(sqlite_uri(path)).query


@given(NAMES)
def test_mlflow_reads_the_artifact_folder_of_every_name(name: str) -> None:
    location = locate(None, Path("/somewhere") / name)
    assert location.artifacts is not None
    folder = local_file_uri_to_path(location.artifacts)  # type: ignore[no-untyped-call]
    assert folder == str(Path("/somewhere") / name / "mlartifacts")
    assert location.own_database == Path("/somewhere") / name / "mlflow.db"
    assert location.is_database


@given(st.text(st.sampled_from("abc -_.,+=@:é"), min_size=1, max_size=12).filter(lambda name: name.strip(".")))
def test_the_address_of_a_name_without_escapes_is_that_of_the_first_release(name: str) -> None:
    assert sqlite_uri(Path("/somewhere") / name) == f"sqlite:////somewhere/{name}"


def test_a_relative_store_of_the_user_is_made_absolute_below_a_strange_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a%41?b").mkdir()
    monkeypatch.chdir(tmp_path / "a%41?b")
    # What the user wrote is an address: %20 is a space, and what follows the question mark are options.
    url = sqlalchemy.make_url(locate("sqlite:///my%20runs.db?timeout=7", tmp_path).uri)
    assert url.database == str(tmp_path / "a%41?b" / "my runs.db")
    assert url.query == {"timeout": "7"}


@pytest.mark.parametrize("name", STRANGE)
def test_store_and_artifacts_are_in_the_home_and_nowhere_else(name: str, tmp_path: Path) -> None:
    home = tmp_path / "homes" / name
    home.mkdir(parents=True)
    (tmp_path / "a.txt").write_text("text")
    location = locate(None, home)
    with mlflow_settings():
        client = open_client(location)
        run = client.create_run(client.create_experiment("e", artifact_location=location.artifacts))
        client.log_artifact(run.info.run_id, str(tmp_path / "a.txt"))
        client.log_param(run.info.run_id, "p", "1")
        assert client.get_run(run.info.run_id).data.params == {"p": "1"}
    assert [path.name for path in (tmp_path / "homes").iterdir()] == [name]
    assert [path.read_text() for path in (home / "mlartifacts").rglob("a.txt")] == ["text"]
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (1,)


def fill(folder: Path, names: list[bytes]) -> Path:
    """Two classes of those names with one file of each name in addition to four plain ones."""
    for label, name in enumerate(names):
        inside = folder / os.fsdecode(name)
        inside.mkdir(parents=True)
        for number, file in enumerate([b"plain-one", b"plain-two", b"plain-three", b"plain-four", *names]):
            Image.new("RGB", (2, 2), (label, number, 0)).save(inside / os.fsdecode(file + b".png"))
    return folder


BYTES = st.binary(min_size=1, max_size=8).filter(lambda name: not set(name) & set(b"\0/") and not name.startswith(b"."))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(BYTES, min_size=2, max_size=2, unique=True))
def test_folder_and_pack_read_names_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    root = fill(tmp_path_factory.mktemp("any") / "images", names)
    data = load_dataset("image_folder", root=root, validation=2, cache=root.parent / "cache")
    packed = pack_folder(root, root.parent / "pack")
    assert len(data.train) + len(data.validation) + len(data.test) == sum(packed.images.values()) == 12
    assert data.class_names == Pack(root.parent / "pack").class_names
    assert " ".join(data.class_names).encode()
    assert pack_folder(root, root.parent / "pack").written == 0


def test_names_that_are_utf_8_are_unchanged_and_others_are_shown_with_escapes(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", ["é雪 %".encode(), b"caf\xe9"])
    assert load_dataset("image_folder", root=root, validation=2).class_names == ("caf\\xe9", "é雪 %")


def test_a_damaged_image_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "images" / "train", [b"a", b"b"]).parent
    fill(root / "test", [b"a", b"b"])
    (root / "train" / "a" / f"{NOT_UTF_8}.png").write_bytes(b"broken")
    for command in (
        ["data", "pack", str(root), "--to", str(tmp_path / "pack")],
        ["sweep", str(write_spec(tmp_path, root)), "--dry-run", "--home", str(tmp_path / "home")],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert r"caf\xe9.png is not a readable image" in done.stderr


def write_spec(folder: Path, root: Path) -> Path:
    text = 'name: s\ndataset: {name: image_folder, root: "%s", validation: 2}\nstudents: [mlp]\nmethods: [scratch]\n'
    (folder / "spec.yaml").write_text(text % root)
    return folder / "spec.yaml"


def test_a_home_whose_name_is_not_utf_8_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"caf\\xe9 has a name that is not UTF-8, so it cannot be recorded"):
        resolve_home(tmp_path / NOT_UTF_8)


def test_a_data_folder_whose_name_is_not_utf_8_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / NOT_UTF_8).mkdir()
    spec = write_spec(tmp_path / NOT_UTF_8, Path("images"))
    with pytest.raises(
        SpecError, match=r"dataset\.root must be UTF-8 text, got .*; rename the file or folder, or name a link to it"
    ):
        load_spec(spec)
    with pytest.raises(UsageError, match="--to must be a path in UTF-8"):
        pack_folder(fill(tmp_path / "images", [b"a", b"b"]), tmp_path / NOT_UTF_8 / "pack")


def test_a_spec_in_a_folder_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    (tmp_path / NOT_UTF_8).mkdir()
    root = fill(tmp_path / "images", [b"a", b"b"])
    spec = write_spec(tmp_path / NOT_UTF_8, root)
    done = CliRunner().invoke(app, ["sweep", str(spec), "--dry-run", "--home", str(tmp_path / "home")])
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("name", STRANGE)
def test_a_spec_names_folders_of_strange_names(name: str, tmp_path: Path) -> None:
    root = fill(tmp_path / name, [b"a", b"b"])
    for named in (name, str(root)):
        (tmp_path / "spec.yaml").write_text(
            f"name: s\ndataset: {{name: image_folder, root: {_quoted(named)}}}\nstudents: [mlp]\nmethods: [scratch]\n"
        )
        spec = load_spec(tmp_path / "spec.yaml")
        assert spec.dataset.root == str(root)
    assert CliRunner().invoke(app, ["data", "pack", str(root), "--to", str(tmp_path / f"{name} pack")]).exit_code == 0


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'
