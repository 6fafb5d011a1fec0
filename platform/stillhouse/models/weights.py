"""Weights on disk: safetensors files, checkpoints of other programs, content hashes.

No code from a file is ever run: safetensors contains none, and pickles are read with torch's `weights_only`.
"""

import argparse
import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from stillhouse.durable import write_atomic
from stillhouse.errors import UsageError

# Keys under which training scripts store the model's weights, next to epoch, optimiser and more.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
# Prefixes that DistributedDataParallel / DataParallel and torch.compile add to every name.
_PREFIXES = ("module.", "_orig_mod.")
# Counters of batch normalisation that checkpoints from before torch 0.4.1 lack.
_OPTIONAL = "num_batches_tracked"

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

# Name in the file and order among the tensors of a safetensors file, which sorts by descending alignment.
_DTYPES: Mapping[torch.dtype, tuple[str, int]] = {
    dtype: (name, order)
    for order, (dtype, name) in enumerate(
        (
            (torch.bool, "BOOL"),
            (torch.uint8, "U8"),
            (torch.int8, "I8"),
            (torch.float8_e5m2, "F8_E5M2"),
            (torch.float8_e4m3fn, "F8_E4M3"),
            (torch.int16, "I16"),
            (torch.uint16, "U16"),
            (torch.float16, "F16"),
            (torch.bfloat16, "BF16"),
            (torch.int32, "I32"),
            (torch.uint32, "U32"),
            (torch.float32, "F32"),
            (torch.complex64, "C64"),
            (torch.float64, "F64"),
            (torch.int64, "I64"),
            (torch.uint64, "U64"),
        )
    )
}


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> str:
    """Writes the model's weights as safetensors, whole or not at all, and returns their `weights_hash`.

    Raises:
        OSError: the disk is full or the folder is not writable; an older file at `path` is unchanged.
    """
    state = _stored(model)
    write_atomic(Path(path), safetensors.torch.save(state, dict(metadata) if metadata else None))
    return state_hash(state)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copies a checkpoint's weights into `model`, all of them or none.

    Raises:
        UsageError: the file cannot be read, or its names or shapes are not the model's.
    """
    load_state(model, read_checkpoint(path), source=str(path))


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copies `state` into `model`, all of it or nothing; devices, dtypes and memory formats stay the model's.

    Args:
        model: receives the weights.
        state: weights by name; prefixes of parallel and compiled models are ignored.
        source: the origin of the weights, for the error.

    Raises:
        UsageError: names or shapes are not the model's.
    """
    own = _without_prefixes(_tensors(model))
    state = _without_prefixes(dict(state))
    missing = [name for name in own if name not in state and not name.endswith(_OPTIONAL)]
    if missing:
        raise UsageError(
            f"{source} lacks the weight '{missing[0]}' of the model{_and_more(missing)}; is it another architecture?"
        )
    unexpected = sorted(name for name in state if name not in own)
    if unexpected:
        raise UsageError(
            f"{source} has the weight '{unexpected[0]}', which the model lacks{_and_more(unexpected)}; "
            "is it another architecture?"
        )
    # In the model's order: the order in a safetensors file is arbitrary.
    for name, value in ((name, state[name]) for name in own if name in state):
        if value.shape != own[name].shape:
            raise UsageError(
                f"'{name}' is {list(value.shape)} in {source} and {list(own[name].shape)} in the model; "
                "do classes, input channels and width agree?"
            )
        if value.is_floating_point() != own[name].is_floating_point() or value.is_complex() != own[name].is_complex():
            raise UsageError(f"'{name}' is {value.dtype} in {source} and {own[name].dtype} in the model")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def weights_hash(model: nn.Module) -> str:
    """Hex blake2b-128 of the names, dtypes, shapes and bytes of the model's weights; the same on every device."""
    return state_hash(_stored(model))


def state_hash(state: Mapping[str, Tensor]) -> str:
    """`weights_hash` of a state dictionary."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored_bytes(model: nn.Module) -> int:
    """Length of the safetensors file of the model's weights without metadata. Nothing is written.

    The model may be on the meta device.
    """
    state = _tensors(model)
    header = {}
    offset = 0
    for name, value in sorted(state.items(), key=lambda item: (-_DTYPES[item[1].dtype][1], item[0])):
        end = offset + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype][0], "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # 8 bytes of header length, then the header padded to a multiple of 8.
    return 8 + -(-len(text) // 8) * 8 + offset


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a safetensors file or in a file of `torch.save`, on the CPU.

    Wrappers (`{"state_dict": ..., "epoch": ...}`) are opened, values that are no tensors are left out, and the prefixes of
    parallel and compiled models are removed.

    Raises:
        UsageError: there is no such file, it is damaged, it would run code, or it has no weights.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UsageError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    content = _read_safetensors(path) if start[8:] == b"{" else _read_pickle(path)
    weights = _unwrap(content)
    if not weights:
        raise UsageError(
            f"the checkpoint {path} has no weights: no mapping from names to tensors, at the top or under {_wrappers()}"
        )
    return _without_prefixes(weights)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata that `save_weights` wrote.

    Raises:
        UsageError: the file is not readable safetensors.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(f"the checkpoint {path} cannot be read: {error}") from error


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary without extra state; names of a compiled model are those of the model inside."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return _without_prefixes(state, prefixes=("_orig_mod.",))


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """The weights as safetensors requires them: contiguous, on the CPU, without shared memory."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in _tensors(model).items()}


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise UsageError(f"the checkpoint {path} is damaged: {error}") from error


def _read_pickle(path: Path) -> Any:
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
        raise UsageError(f"the checkpoint {path} is damaged or neither safetensors nor a file of torch.save") from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"the checkpoint {path} is damaged or neither safetensors nor a file of torch.save") from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    """The first mapping from names to tensors: `content` itself, or the value under a known wrapper's key."""
    if not isinstance(content, Mapping):
        return {}
    for wrapper in _WRAPPERS:
        if inner := _unwrap(content.get(wrapper)):
            return inner
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _without_prefixes(weights: dict[str, Tensor], prefixes: tuple[str, ...] = 2 * _PREFIXES) -> dict[str, Tensor]:
    """Names without the prefixes that all of them share; prefixes may be nested in any order."""
    for prefix in prefixes:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _wrappers() -> str:
    return ", ".join(f"'{wrapper}'" for wrapper in _WRAPPERS)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
