"""Checkpoints of other programs: what torch or safetensors wrote, next to epoch, optimiser and more.

No code from a file is ever run: safetensors contains none, and pickles are read with torch's `weights_only`.
"""

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from stillhouse.errors import UsageError, suggestion
from stillhouse.user_paths import check_regular

MAX_CHECKPOINT_BYTES = 16 * 1000**3
"""The largest checkpoint file that is read, and the most that its parts may take together."""

_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder that `timm.models.save_for_hf` writes, the safe form first."""

# Keys under which training scripts store the model's weights, next to epoch, optimiser and more.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
# A dictionary can contain itself.
_MAX_WRAPPERS = 4
# Prefixes that DistributedDataParallel / DataParallel and torch.compile add to every name; they may be nested in any order.
PREFIXES = 2 * ("module.", "_orig_mod.")

# Many published checkpoints also contain a Namespace of command line arguments and NumPy scalars (a best accuracy); both are
# plain data. NumPy before 2.0 wrote the function that makes scalars under another path.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)),
]


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a checkpoint file.

    Attributes:
        weights: by name, on the CPU, without the prefixes of parallel and compiled models.
        taken: the key of the file's dictionary under which they were; "" for the dictionary itself.
        others: further keys under which the file has weights of the same names, such as `state_dict_ema`.
    """

    weights: dict[str, Tensor]
    taken: str
    others: tuple[str, ...]

    def note(self, source: str) -> str | None:
        """Which weights are taken and how to take the others; None when there is no choice."""
        if not self.others:
            return None
        return (
            f"{source} has weights under {self.taken} and {', '.join(self.others)}; those under {self.taken} are taken; "
            f"for others, write {checkpoint_file(source)[0]}#{self.others[0]}"
        )


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a safetensors file or in a file of `torch.save`; see `open_checkpoint`."""
    return open_checkpoint(path).weights


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The weights in a safetensors file or in a file of `torch.save`, on the CPU.

    Wrappers (`{"state_dict": ..., "epoch": ...}`) are opened, values that are no tensors are left out, and the prefixes of
    parallel and compiled models are removed.

    Args:
        path: of the file; `file.pth#state_dict_ema` takes the weights under that key.

    Raises:
        UsageError: there is no such file, it is damaged or too large, it would run code, or it has no weights.
    """
    file, key = checkpoint_file(path)
    size = check_regular(file, "the checkpoint", MAX_CHECKPOINT_BYTES)
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise UsageError(f"the checkpoint {file} cannot be read: {error.strerror}") from error
    content = _read_safetensors(file) if start[8:] == b"{" else _read_pickle(file, size)
    taken, weights = _choose(content, file, key)
    weights = without_prefixes(weights, PREFIXES)
    others = [
        each
        for each in _keys_of_weights(content)
        if taken and each != taken.partition(".")[0]
        if without_prefixes(_weights_under(content, each), PREFIXES).keys() == weights.keys()
    ]
    return Checkpoint(weights, taken, tuple(others))


def _choose(content: Any, file: Path, key: str) -> tuple[str, dict[str, Tensor]]:
    """The key and the weights under it; the first weights if `key` is empty.

    Raises:
        UsageError: there are none.
    """
    if key:
        if weights := _weights_under(content, key):
            return key, weights
        hint = suggestion(key, _keys_of_weights(content))
        raise UsageError(f"the checkpoint {file} has no weights under '{key}'; {hint}")
    taken, weights = _unwrap(content)
    if not weights:
        wrappers = ", ".join(f"'{wrapper}'" for wrapper in _WRAPPERS)
        hints = [f"{file}#{each}" for each in _keys_of_weights(content)]
        remedy = f"; write {' or '.join(hints[:3])}" if hints else ""
        raise UsageError(
            f"the checkpoint {file} has no weights: no mapping from names to tensors, at the top or under {wrappers}{remedy}"
        )
    return taken, weights


def checkpoint_file(path: str | Path) -> tuple[Path, str]:
    """The file that a checkpoint's address names, and the key in it after `#`; "" where it names none.

    Of a folder as timm and Hugging Face write it, the file of weights in it.
    """
    # A file whose name contains the sign comes first.
    whole = Path(path)
    name, sign, key = str(path).rpartition("#")
    file, key = (Path(name), key) if sign and name and "/" not in key and not whole.exists() else (whole, "")
    inside = [file / each for each in _IN_FOLDER] if file.is_dir() else []
    return next((each for each in inside if each.is_file()), file), key


def without_prefixes(weights: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Names without those of the prefixes, in this order, that all of them share."""
    for prefix in prefixes:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return dict(weights)


def shared_prefixes(names: Mapping[str, Tensor]) -> Iterator[str]:
    """The prefixes of whole parts, `model.` and `model.net.`, that all names share, shortest first; the first one is empty."""
    parts = [name.split(".")[:-1] for name in names]
    prefix = ""
    yield prefix
    for level in zip(*parts, strict=False):
        if len(set(level)) != 1:
            return
        prefix += f"{level[0]}."
        yield prefix


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise UsageError(f"the checkpoint {path} is damaged: {error}") from error


def _read_pickle(path: Path, size: int) -> Any:
    _check_unpacked_size(path, size)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN):
            warnings.simplefilter("ignore")  # torch's advice on old formats concerns the author of the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise UsageError(
                f"the checkpoint {path} contains more than tensors and would run code when it is read; "
                "save only model.state_dict(), preferably as safetensors"
            ) from error
        raise _damaged(path) from error
    except (
        *(RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError, MemoryError, TypeError, IndexError),
        *(OverflowError, zipfile.BadZipFile),
    ) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UsageError:
    return UsageError(f"the checkpoint {path} is damaged or neither safetensors nor a file of torch.save")


def _check_unpacked_size(path: Path, size: int) -> None:
    """Checks an archive before it is read: `torch.save` does not compress, so its parts are not larger than the file.

    Raises:
        UsageError: the parts take more than twice the file, or more than `MAX_CHECKPOINT_BYTES`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # torch's older format is no archive; whatever else it is, torch refuses it
    if unpacked > min(2 * size, MAX_CHECKPOINT_BYTES):
        raise UsageError(
            f"the checkpoint {path} has {size:,} bytes and unpacks to {unpacked:,}; files of torch.save are not compressed; "
            "save it again with torch.save"
        )


def _unwrap(content: Any, depth: int = _MAX_WRAPPERS) -> tuple[str, dict[str, Tensor]]:
    """The first mapping from names to tensors and its key: `content` itself, or the value under a known wrapper's key."""
    if not isinstance(content, Mapping) or depth == 0:
        return "", {}
    for wrapper in _WRAPPERS:
        below, inner = _unwrap(content.get(wrapper), depth - 1)
        if inner:
            return f"{wrapper}.{below}" if below else wrapper, inner
    return "", {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _keys_of_weights(content: Any) -> list[str]:
    """The keys at the top under which there are weights."""
    if not isinstance(content, Mapping):
        return []
    return [key for key in content if isinstance(key, str) and _weights_under(content, key)]


def _weights_under(content: Any, key: str) -> dict[str, Tensor]:
    return _unwrap(content.get(key))[1] if isinstance(content, Mapping) else {}
