"""Checkpoints: nested plain data and tensors in one checked file, loaded without executing code."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from stillhouse.durable import Damaged, read_checked, write_checked


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (dicts, lists, numbers, strings, tensors) atomically and durably.

    Raises:
        OSError: the disk is full; an earlier checkpoint at `path` is untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_checked(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU, from where modules and optimisers copy it to their own devices.

    Raises:
        FileNotFoundError: there is none.
        Damaged: the file is truncated, damaged or contains more than plain data.
    """
    content = io.BytesIO(read_checked(path))
    # Only torch's older formats are not zip files, and its reader of those raises many kinds of errors.
    if not zipfile.is_zipfile(content):
        raise Damaged(f"{path} is not a checkpoint: it is not a zip file")
    content.seek(0)
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Damaged(f"{path} is not a checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise Damaged(f"{path} is not a checkpoint: it contains a {type(state).__name__}")
    return state
