"""Code that a user names as `module:function`: where it may come from, and the border at which its errors become ours."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from stillhouse.errors import UsageError, UserCodeExit, describe_error, first_line

_LIBRARIES = ("torchvision:", "timm:", "hf:")
"""What begins the names of models that libraries have."""
OTHER_MODELS = "torchvision:<name>, timm:<name>, hf:<folder>, or package.module:function of your own"
"""How models that are not shipped are named."""
_SEPARATE = "put its file beside the spec, or put the folder of its file on PYTHONPATH"


@contextmanager
def user_code() -> Iterator[None]:
    """The border to user-defined code: `SystemExit` and its like become an `Exception` there; Ctrl-C still interrupts.

    Raises:
        UserCodeExit: the code raised an exception that `except Exception` does not catch.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if hasattr(error, "ray_terminate_msg"):
            raise  # Ray ends a worker so when the process receives SIGTERM
        raise UserCodeExit(describe_error(error)) from error


def import_user_module(name: str, what: str) -> ModuleType:
    """The module of a `module:function`: one beside the spec, on PYTHONPATH, or of an installed package.

    Args:
        what: the thing that it defines, in a message: `model 'a:b'`.

    Raises:
        UsageError: it belongs to the standard library, is not found, or raises when it is imported.
    """
    if is_standard_library(name):
        raise UsageError(
            f"{what} names module '{name[:80]}' of Python's standard library, which holds none; name a module of your own"
        )
    try:
        with user_code():
            return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{what} cannot be imported ({first_line(error)}); {_SEPARATE}") from error
    except Exception as error:
        raise UsageError(f"{what} cannot be imported: {describe_error(error)}; correct its file") from error


def check_origin(found: Any, what: str) -> None:
    """Checks that a module does not pass on a function of the standard library, such as `os.system`.

    Raises:
        UsageError: it does.
    """
    module = getattr(found, "__module__", None)
    if (inspect.isroutine(found) or inspect.isclass(found)) and isinstance(module, str) and is_standard_library(module):
        name = f"{module}.{getattr(found, '__name__', '?')}"
        raise UsageError(f"{what} is {name} of Python's standard library; name one of your own")


def is_standard_library(module: str) -> bool:
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top in sys.builtin_module_names


def modules_of(names: Iterable[str | None]) -> list[str]:
    """The modules of those names that are `module:function`, each once."""
    found = (name.partition(":")[0] for name in names if name and ":" in name and not is_of_library(name))
    return list(dict.fromkeys(found))


def is_of_library(name: str) -> bool:
    """Whether the name is that of a library's model, `timm:resnet18`, and no user-defined `module:function`."""
    return name.startswith(_LIBRARIES)


def make_importable(folder: Path) -> None:
    """Adds a folder to the import path, so that `module:function` in a spec finds user code there.

    Installed packages take precedence.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
