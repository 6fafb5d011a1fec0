"""Facts of the catalogue that were computed before, so that a list of methods or models needs no torch.

They are stored in the user's cache folder with a hash of the installed code: any change of it, and they are computed again.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillhouse import __version__
from stillhouse.durable import content_hash, write_atomic
from stillhouse.user_paths import resolve_path

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT_METHODS = _PACKAGE.parents[1] / "methods"
_METHOD_FOLDERS = "STILLHOUSE_METHODS"
_ENTRY_POINT_GROUP = "stillhouse.methods"

Facts = list[dict[str, Any]]


def stored_or_computed(kind: str, compute: Callable[[], Facts], *, folders: Sequence[Path] = ()) -> Facts:
    """What `compute` returns, from the cache folder if it was stored there by the same code.

    Args:
        kind: names the file: `methods`, `models`.
        folders: folders of method files that the user named.
    """
    if list(importlib.metadata.entry_points(group=_ENTRY_POINT_GROUP)):
        return compute()  # code of other packages, which may be edited in place
    path, code = _cache_folder() / f"{kind}.json", _code_version(folders)
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["code"] == code and isinstance(stored["facts"], list):
            return list(stored["facts"])
    facts = compute()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"code": code, "facts": facts}).encode())
    return facts


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillhouse"


def _code_version(folders: Sequence[Path]) -> str:
    """A hash of the sizes and times of all files of code that the facts come from, and of the version of torch."""
    named = [each for each in os.environ.get(_METHOD_FOLDERS, "").split(os.pathsep) if each]
    # Folders that this process added before.
    added = getattr(sys.modules.get("stillhouse.methods"), "__path__", ())
    mine = [resolve_path(each, "method folder") for each in [*map(Path, named), *folders]]
    files = [
        [str(path), status.st_size, status.st_mtime_ns]
        for folder in (_PACKAGE, _CHECKOUT_METHODS, *added, *mine)
        for path, status in _python_files(folder)
    ]
    return content_hash({"stillhouse": __version__, "torch": importlib.metadata.version("torch"), "files": files})


def _python_files(folder: str | Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in sorted(Path(folder).rglob("*.py")):
        with suppress(OSError):
            yield path, path.stat()
