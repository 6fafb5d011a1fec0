"""A model's weights on disk and in memory: safetensors files, copies into a model, content hashes."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from stillhouse.durable import write_atomic
from stillhouse.errors import UsageError
from stillhouse.models.checkpoint_files import PREFIXES, read_checkpoint, shared_prefixes, without_prefixes
from stillhouse.models.weight_names import listed, suggested_rename

# Counters of batch normalisation that checkpoints from before torch 0.4.1 lack.
_OPTIONAL = "num_batches_tracked"

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
    return save_state(_tensors(model), path, metadata)


def save_state(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> str:
    """Writes tensors as safetensors, whole or not at all, and returns their `state_hash`.

    Raises:
        OSError: the disk is full or the folder is not writable; an older file at `path` is unchanged.
    """
    state = _detached(state)
    write_atomic(Path(path), safetensors.torch.save(state, dict(metadata) if metadata else None))
    return state_hash(state)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copies a checkpoint's weights into `model`, all of them or none.

    Raises:
        UsageError: the file cannot be read, or its names or shapes are not the model's.
    """
    load_state(model, read_checkpoint(path), source=str(path))


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, left_as_is: Collection[str] = frozenset()
) -> None:
    """Copies `state` into `model`, all of it or nothing; devices, dtypes and memory formats stay the model's.

    Args:
        model: receives the weights.
        state: weights by name; a prefix that all names share, such as Lightning's `model.`, is ignored.
        source: the origin of the weights, for the error.
        left_as_is: names of the model's weights that keep their values, such as those of a new head; `state` may have them.

    Raises:
        UsageError: names or shapes are not the model's.
    """
    own = without_prefixes(_tensors(model), PREFIXES)
    state = without_prefixes(state, PREFIXES)
    if own.keys() != state.keys():
        own, state = _common_prefix_removed(own, state, left_as_is)
    required = [name for name in own if name not in left_as_is and not name.endswith(_OPTIONAL)]
    if any(name not in state for name in required) or any(name not in own for name in state):
        raise UsageError(_mismatch(own, state, required, source))
    # In the model's order: the order in a safetensors file is arbitrary.
    copied = [name for name in own if name in state and name not in left_as_is]
    for name in copied:
        value = state[name]
        if value.shape != own[name].shape:
            raise UsageError(
                f"'{name}' is {list(value.shape)} in {source} and {list(own[name].shape)} in the model; "
                "do classes, input channels and width agree?"
            )
        if value.is_floating_point() != own[name].is_floating_point() or value.is_complex() != own[name].is_complex():
            raise UsageError(f"'{name}' is {value.dtype} in {source} and {own[name].dtype} in the model")
    with torch.no_grad():
        for name in copied:
            own[name].copy_(state[name])


def _mismatch(own: Mapping[str, Tensor], state: Mapping[str, Tensor], required: Sequence[str], source: str) -> str:
    """Which names differ, and the `rename` under which more of them agree."""
    missing = [name for name in required if name not in state]
    extra = sorted(name for name in state if name not in own)
    facts = [f"lacks {listed(missing)} of the model"] * bool(missing)
    facts += [f"has {listed(extra)}, which the model lacks"] * bool(extra)
    shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in (state, own)]
    if found := suggested_rename(shapes[0], shapes[1], required):
        entries = ", ".join(f"'{pattern}': {'null' if new is None else repr(new)}" for pattern, new in found.items())
        remedy = f"more of them agree with rename: {{{entries}}}"
        if not missing:
            remedy = f"is it another architecture? rename: {{{entries}}} beside weights leaves them out"
    else:
        remedy = "is it another architecture? rename: {regular expression: replacement} beside weights maps names"
    return f"{source} {' and '.join(facts)}; {remedy}"


def weights_hash(model: nn.Module) -> str:
    """Hex blake2b-128 of the names, dtypes, shapes and bytes of the model's weights; the same on every device."""
    return state_hash(_detached(_tensors(model)))


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
    return state_bytes(_tensors(model))


def state_bytes(state: Mapping[str, Tensor]) -> int:
    """Length of the safetensors file of these tensors without metadata; they may be on the meta device."""
    header = {}
    offset = 0
    for name, value in sorted(state.items(), key=lambda item: (-_DTYPES[item[1].dtype][1], item[0])):
        end = offset + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype][0], "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # 8 bytes of header length, then the header padded to a multiple of 8.
    return 8 + -(-len(text) // 8) * 8 + offset


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
    return without_prefixes(state, ("_orig_mod.",))


def _common_prefix_removed(
    own: dict[str, Tensor], state: dict[str, Tensor], left_as_is: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both without the prefix that all their names share, if that brings the names together; else both as they are.

    Training frameworks put the model below an attribute: Lightning's is often `model.` or `net.`.
    """
    *_, longest = shared_prefixes(own)
    for removed in ("", longest):
        names = {name.removeprefix(removed): value for name, value in own.items()}
        # The caller names the weights that stay as they are by their names in the model.
        if removed and left_as_is:
            break
        needed = {name for name in names if not name.endswith(_OPTIONAL) and name not in left_as_is}
        for prefix in shared_prefixes(state):
            cut = {name.removeprefix(prefix): value for name, value in state.items()}
            if needed <= cut.keys() <= names.keys():
                return names, cut
    return own, state


def _detached(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as safetensors requires them: contiguous, on the CPU, without shared memory."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
