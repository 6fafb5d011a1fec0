"""What every worker process sets up first (threads, import paths, method folders), and how code reaches other nodes."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

import torch

from stillhouse.device import limit_memory

COMMIT_VARIABLE = "STILLHOUSE_COMMIT"
_USERS, _LIST = "users", "stillhouse-shipped.json"
_NO_CODE = shutil.ignore_patterns("__pycache__", ".*", "*.pyc", "*.pt", "*.pth", "*.safetensors", "*.arrow", "*.npz")


def driver_import_paths() -> list[str]:
    """The absolute, existing folders of this process's `sys.path`, for workers on the same machine."""
    return [os.path.abspath(path) for path in sys.path if path == "" or os.path.isdir(path)]  # noqa: PTH100, PTH112


def prepare_worker(
    import_paths: Iterable[str], threads: int, method_folders: Iterable[str] = (), gpu_share: float = 0.0
) -> None:
    """Lets this process import the driver's code, and limits it to its share of the machine.

    Args:
        import_paths: folders to append to `sys.path`.
        threads: for torch's operators; 0 for all cores.
        method_folders: folders with users' method files, as the driver sees them.
        gpu_share: the largest share of one GPU's memory that this process may take; 0 or 1 sets no limit.

    Raises:
        InfrastructureError: the share is smaller than what every process takes.
    """
    from stillhouse import methods

    for path in import_paths:
        if path not in sys.path:
            sys.path.append(path)
    shipped = _shipped_folders()
    for folder in method_folders:
        methods.add_folder(shipped.get(str(folder), folder))
    torch.set_num_threads(threads or os.cpu_count() or 1)
    limit_memory(gpu_share)


def environment_of_workers() -> Mapping[str, str]:
    """Environment variables that workers need in addition to the driver's."""
    return {
        # Fractional and zero shares must hide the other GPUs (ray 2.60).
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        # Waiting threads must not spin: a teacher that fills views shares its cores with the trials.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def stage_code(folder: Path, *, modules: Iterable[str], method_folders: Iterable[str]) -> str:
    """Copies the code that nodes of a cluster need and may not have into `folder`; returns their PYTHONPATH, relative to it.

    From a checkout the platform is copied too; an installed package is expected on every node. User-defined code is copied
    from where this process found it.

    Args:
        modules: names of the user-defined modules in the spec; modules that they import from the same folders are copied too.
        method_folders: folders with users' method files.
    """
    import stillhouse

    root = Path(stillhouse.__file__).resolve().parents[2]
    paths = [_USERS]
    if is_checkout(root):
        for part in ("platform", "methods", "search_spaces"):
            shutil.copytree(root / part, folder / part, ignore=_NO_CODE)
        paths.insert(0, "platform")
    users = folder / _USERS
    users.mkdir()
    for source in sorted(_users_code(modules)):
        if source.is_dir():
            shutil.copytree(source, users / source.name, ignore=_NO_CODE)
        else:
            shutil.copy2(source, users / source.name)
    copies = {}
    for number, folder_of_methods in enumerate(method_folders):
        copies[str(folder_of_methods)] = f"methods-{number}"
        shutil.copytree(folder_of_methods, users / copies[str(folder_of_methods)], ignore=_NO_CODE)
    (users / _LIST).write_text(json.dumps(copies), encoding="utf-8")
    return os.pathsep.join(paths)


def is_checkout(root: Path) -> bool:
    return (root / "platform" / "stillhouse").is_dir()


def _shipped_folders() -> dict[str, str]:
    """The copies of the driver's method folders on this node, by their paths at the driver, if they were sent."""
    for entry in sys.path:
        users = Path(entry).absolute()
        if (users / _LIST).is_file():
            return {there: str(users / here) for there, here in json.loads((users / _LIST).read_text(encoding="utf-8")).items()}
    return {}


def _users_code(modules: Iterable[str]) -> set[Path]:
    """The top-level files and packages of these modules, and of all modules imported from the same folders."""
    loaded = {name: _file_of(module) for name, module in list(sys.modules.items())}
    folders = set()
    for name in modules:
        file = loaded.get(name)
        if file is not None and not _installed(file):
            folders.add(_folder_of(name, file))
    return {
        _folder_of(name, file) / _top(name, file)
        for name, file in loaded.items()
        if file is not None and name != "__main__" and _folder_of(name, file) in folders
    }


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).absolute() if isinstance(file, str) and file.endswith(".py") else None


def _folder_of(name: str, file: Path) -> Path:
    """The folder on `sys.path` that contains the module's top-level package."""
    depth = name.count(".") + (file.name == "__init__.py")
    return file.parents[depth] if depth < len(file.parents) else file.parent


def _top(name: str, file: Path) -> str:
    top = name.partition(".")[0]
    return top if "." in name or file.name == "__init__.py" else file.name


def _installed(file: Path) -> bool:
    return "site-packages" in file.parts or file.is_relative_to(Path(os.__file__).parent)
