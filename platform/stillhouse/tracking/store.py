"""Opening an MLflow store: timeouts and retries, quiet logs, a schema made once, and errors sorted into two kinds."""

import fcntl
import logging
import os
import socket
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from stillhouse.errors import first_line
from stillhouse.spec.secret_masking import mask_text
from stillhouse.tracking.locations import Location

_T = TypeVar("_T")

PROBE_TIMEOUT_S = 3.0
_LOCK_TIMEOUT_S = 60
_TIMEOUT_S = 2
# Among PostgreSQL's advisory locks, which are numbers that programs agree on: "stillhou" in ASCII.
_LOCK_NUMBER = int.from_bytes(b"stillhou")

# By default MLflow retries for about 4 minutes. Here the caller repeats a request: it looks first whether the request
# whose answer was lost has created a run.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
_MOVE_AWAY = "move it away, and `stillhouse sync` writes the sweep into a new one"
_LOCAL_FILE_SYSTEMS = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
_CHATTY_LOGGERS = ("alembic", "mlflow.store.db.utils", "mlflow.store.tracking", "urllib3.connectionpool")


class UnreachableError(Exception):
    """The store did not answer, or could not do its work now: the same request may succeed later."""


class RejectedError(Exception):
    """The store refused: the same request would be refused again."""


class Settings:
    """MLflow's environment variables while there are writers; variables that the user has set are unchanged."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _users: ClassVar[int] = 0
    _ours: ClassVar[set[str]] = set()
    _ahead: ClassVar[set[Path]] = set()

    @classmethod
    def apply(cls) -> None:
        with cls._lock:
            cls._users += 1
            for name, value in _SETTINGS.items():
                if name not in os.environ:
                    os.environ[name] = value
                    cls._ours.add(name)

    @classmethod
    def release(cls) -> None:
        with cls._lock:
            cls._users -= 1
            if cls._users == 0:
                for name in cls._ours:
                    os.environ.pop(name, None)
                cls._ours.clear()
                while cls._ahead:
                    _gather(cls._ahead.pop())

    @classmethod
    def writes_ahead(cls, database: Path) -> None:
        """Moves the write-ahead log of `database` into its file when the last writer is done."""
        with cls._lock:
            cls._ahead.add(database)


@contextmanager
def settings() -> Iterator[None]:
    """MLflow's environment variables are set while the block runs."""
    Settings.apply()
    try:
        yield
    finally:
        Settings.release()


def open_client(location: Location) -> Any:
    """An `MlflowClient` for `location`, with the schema of a database in place.

    Raises:
        UnreachableError, RejectedError: with one sentence.
    """
    probe(location)
    quieten()
    from mlflow.tracking import MlflowClient

    def connect() -> Any:
        with _logged_in(location):
            client = MlflowClient(location.uri)
            client.search_experiments(max_results=1)
            return client

    if not location.is_database:
        return attempt(connect)
    with _schema_lock(location):
        client = attempt(connect)
    if (database := location.own_database) is not None:
        _write_ahead(database)
    return client


def probe(location: Location) -> None:
    """Checks that something listens at the address, or that an SQLite file can be opened: MLflow tries for minutes.

    Raises:
        UnreachableError: nothing listens, or another process locks the file.
        RejectedError: the file is no database, or it cannot be opened.
    """
    if (file := location.sqlite_file) is not None:
        _probe_sqlite(file, location)
    if (address := location.address) is None:
        return
    try:
        socket.create_connection(address, timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise UnreachableError(f"nothing answers at {location.shown} ({error.strerror or error})") from error


def _probe_sqlite(file: Path, location: Location) -> None:
    if not os.path.lexists(file):
        return
    try:
        if not file.is_file():
            raise RejectedError(f"the tracking store {location.shown} cannot be opened: {file} is not a file; {_MOVE_AWAY}")
        address = f"file:{quote(str(file))}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=PROBE_TIMEOUT_S)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (OSError, sqlite3.Error) as error:
        # Codes from 256 on are refinements of a basic one, which is the last byte (sqlite.org/rescode.html).
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise UnreachableError(f"the tracking store {location.shown} is locked by another process") from error
        raise RejectedError(f"the tracking store {location.shown} cannot be opened: {error}; {_MOVE_AWAY}") from error


@contextmanager
def _logged_in(location: Location) -> Iterator[None]:
    """Connects once, so that a wrong password fails now and not after MLflow's ten attempts.

    On PostgreSQL the connection holds an advisory lock: drivers of several homes or machines may open a new database at once.
    """
    if not location.is_database or location.address is None:
        yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(location.uri, poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'"))
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})"))
            yield
    finally:
        engine.dispose()


def _write_ahead(database: Path) -> None:
    """Turns on SQLite's write-ahead log: one wait for the disk per commit instead of four, and readers do not stop the writer.

    The setting is stored in the file. It is left off on a network file system: the log works on one machine only.
    """
    if _file_system(database) not in _LOCAL_FILE_SYSTEMS:
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        Settings.writes_ahead(database)


def _gather(database: Path) -> None:
    """Moves the log into the database, so that a copy of that one file is complete; parts that others read stay in the log."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _file_system(path: Path) -> str | None:
    """The type of the file system that holds `path`; None where the system does not report it."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    # proc(5): the fifth field is the mount point, with spaces as \040; the type follows a single hyphen.
    mounts = {line.split()[4].replace("\\040", " "): line.partition(" - ")[2].split()[0] for line in lines}
    resolved = path.resolve()
    return next((mounts[str(folder)] for folder in (resolved, *resolved.parents) if str(folder) in mounts), None)


@contextmanager
def _schema_lock(location: Location) -> Iterator[None]:
    """One process of this home at a time: several that open a new database at once would leave a broken schema."""
    location.home.mkdir(parents=True, exist_ok=True)
    with (location.home / ".mlflow-schema.lock").open("wb") as file:
        for _ in range(10 * _LOCK_TIMEOUT_S):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise UnreachableError(f"another process has been opening {location.shown} for a minute")
        yield


def quieten() -> None:
    """Keeps migrations and connection retries out of the sweep's log; a level that the user chose is unchanged."""
    for name in _CHATTY_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
    # mlflow 3.17 on SQLAlchemy 2.1. The filter of this one message is never removed, because catch_warnings would change
    # the filters of every thread.
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")


def attempt(request: Callable[[], _T]) -> _T:
    """The result of `request`, its errors sorted into `UnreachableError` and `RejectedError`.

    Raises:
        UnreachableError: connection trouble, a full disk, a locked database, an HTTP status of 408, 429 or 5xx.
        RejectedError: everything else.
    """
    try:
        return request()
    except (UnreachableError, RejectedError):
        raise
    except Exception as error:
        sentence = _sentence(error)
        raise (UnreachableError(sentence) if _may_pass(error) else RejectedError(sentence)) from error


def _may_pass(error: Exception) -> bool:
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError

    if isinstance(error, requests.RequestException):
        return _is_passing_status(503 if error.response is None else error.response.status_code)
    if isinstance(error, MlflowException):
        # MLflow reports the database of another version as INTERNAL_ERROR, but waiting does not help.
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
        return _is_passing_status(status) and "out-of-date database schema" not in str(error)
    return isinstance(error, OSError | DBAPIError)


def _is_passing_status(status: int) -> bool:
    return status in {408, 429} or status >= 500


def _sentence(error: Exception) -> str:
    """The first line of an error, without secrets."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install the driver of the database (pip install psycopg2-binary for PostgreSQL)"
    return mask_text(first_line(error))[:500]
