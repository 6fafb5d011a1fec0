"""Where tracking data is stored."""

import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from stillhouse.durable import Damaged, read_file, set_aside, write_atomic
from stillhouse.spec.secret_masking import HIDDEN, mask_text, user_part

UI_PORT = 5000
_NEEDS_ESCAPES = re.compile(r"[%?\x00-\x1f\x7f]")
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Location:
    """A tracking store.

    Attributes:
        uri: the absolute address as MLflow takes it; it may contain credentials, so it is never printed.
        shown: the address for logs, facts and reports.
        artifacts: where a new experiment stores its artifacts; None lets the server decide.
        home: the folder of the embedded store and of the identity of this home's sweeps.
    """

    uri: str
    shown: str
    artifacts: str | None
    home: Path

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def is_database(self) -> bool:
        return self.uri.partition(":")[0].partition("+")[0] in {"sqlite", "postgresql", "mysql", "mssql"}

    @property
    def own_database(self) -> Path | None:
        """The SQLite file of this home; None for a store elsewhere."""
        path = self.home / "mlflow.db"
        return path if self.uri == sqlite_uri(path) else None

    @property
    def sqlite_file(self) -> Path | None:
        """The file of an SQLite store; None for a store of another kind."""
        scheme, _, path = self.uri.partition(":///")
        if self.own_database is not None or scheme.partition("+")[0] != "sqlite" or path.startswith((":memory:", "file:")):
            return self.own_database
        return Path(unquote(path.partition("?")[0]))

    @property
    def pages(self) -> str | None:
        """The address for a browser: the server, or the one at which `stillhouse ui` serves a database; None for others."""
        if not self.is_server:
            return f"http://127.0.0.1:{UI_PORT}" if self.is_database else None
        parts = urlsplit(self.uri)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

    def hide(self, text: str) -> str:
        """`text` without the credentials of this store; the rest is unchanged: a page may contain similar code."""
        user = user_part(self.uri)
        hidden = text.replace(self.uri, self.shown)
        # Not within a longer word: `u:p@` is no part of `menu:p@ge`.
        return re.sub(rf"(?<!\w){re.escape(user)}", f"{HIDDEN}@", hidden) if user else hidden

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of a store on a network; None for a file or an address without a host."""
        scheme = self.uri.partition(":")[0].partition("+")[0]
        if scheme not in _DEFAULT_PORTS:
            return None
        try:
            parts = urlsplit(self.uri)
            host, port = parts.hostname, parts.port
        except ValueError:
            return None
        return (host, port or _DEFAULT_PORTS[scheme]) if host else None


def locate(uri: str | None, home: Path) -> Location:
    """The store that `uri` names; None is the SQLite file `home/mlflow.db` with artifacts in `home/mlartifacts`.

    A relative SQLite path is made absolute here, since the next process to open it may have another working directory.
    """
    home = home.expanduser().absolute()
    uri = uri.strip() if uri else sqlite_uri(home / "mlflow.db")
    if uri.startswith("sqlite:///") and not uri.startswith(("sqlite:////", "sqlite:///:memory:")):
        # The part that the user wrote is part of an address already.
        uri = f"{sqlite_uri(Path.cwd()).rstrip('/')}/{uri.removeprefix('sqlite:///')}"
    location = Location(uri=_with_driver(uri), shown=mask_text(uri), artifacts=None, home=home)
    return replace(location, artifacts=(home / "mlartifacts").as_uri()) if location.is_database else location


def sqlite_uri(path: Path) -> str:
    """The address of the SQLite file at the absolute `path`.

    SQLAlchemy reads `%41` as a letter and what follows `?` as options. MLflow makes the folder of an address that begins with
    `sqlite:///` without decoding it, so an address with escapes names the driver too. Other addresses have no escapes, as in
    earlier releases, whose sweeps recorded them.
    """
    text = str(path)
    if not _NEEDS_ESCAPES.search(text):
        return f"sqlite:///{text}"
    return f"sqlite+pysqlite:///{_NEEDS_ESCAPES.sub(lambda found: f'%{ord(found[0]):02X}', text)}"


def _with_driver(uri: str) -> str:
    """`uri` with the driver named: SQLAlchemy 2.1 uses psycopg for PostgreSQL, but MLflow usually comes with psycopg2."""
    scheme, _, rest = uri.partition("://")
    if scheme in {"postgresql", "postgres"} and find_spec("psycopg") is None:
        return f"postgresql+psycopg2://{rest}"
    return uri


def home_identity(home: Path) -> str:
    """A random name of this home, made once: it keeps sweeps of the same name apart on a shared server.

    A name that is empty or damaged is replaced: two homes without a name would write into each other's runs.
    """
    path = home / "mlflow-home-id"
    home.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError, Damaged):
        return _read_identity(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    write_atomic(beside, f"{secrets.token_hex(8)}\n".encode())
    try:
        # Another process may make one at the same time: the first one counts, and each is whole when it appears.
        path.hardlink_to(beside)
    except OSError:
        with suppress(FileNotFoundError, Damaged):
            return _read_identity(path)
        set_aside(path)
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
    return _read_identity(path)


def _read_identity(path: Path) -> str:
    """The name in the file.

    Raises:
        FileNotFoundError, Damaged: it has none.
    """
    text = read_file(path).decode("ascii", "replace").strip()
    if not re.fullmatch("[0-9a-f]{16}", text):
        raise Damaged(f"{path} holds no identity")
    return text
