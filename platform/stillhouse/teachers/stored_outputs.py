"""What a teacher returns for the validation and test splits: computed once, stored beside its weights, read by every trial."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData
from stillhouse.data.evaluation_identity import evaluation_identity
from stillhouse.distill.evaluation import split_outputs
from stillhouse.durable import Damaged, content_hash, read_checked, write_checked
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.node_home import NodeHome
from stillhouse.tasks import SplitOutputs

SPLITS = ("validation", "test")
_TARGETS = "targets"


def outputs_file(folder: Path, data: ImageData, *, weights_hash: str, normalization: str) -> Path:
    """The file in the teacher's folder, named by all that decides its content.

    Args:
        normalization: the teacher's own; empty where it is that of the data set.
    """
    identity = {
        "weights": weights_hash,
        "normalization": normalization,
        "data": data.fingerprint,
        "evaluation": evaluation_identity(data),
    }
    return folder / f"outputs-{content_hash(identity, digits=16)}"


def compute_outputs(model: nn.Module, data: ImageData, path: Path, device: str, home: NodeHome) -> dict[str, SplitOutputs]:
    """The outputs on both splits, from the file where it holds them; otherwise computed, and stored there.

    Raises:
        NoNumbersError: the model returns NaN.
        OSError: the disk is full.
    """
    home.pull(path)
    try:
        return _read(path)
    except (FileNotFoundError, Damaged):
        pass
    found = {name: split_outputs(model, data, getattr(data, name), device) for name in SPLITS}
    write_checked(path, save(_tensors(found)))
    home.push(path)
    return found


def outputs_here(path: str, home: NodeHome, split: str) -> SplitOutputs:
    """The outputs on one split that a teacher's actor stored.

    Args:
        path: of the file, as the driver sees it.

    Raises:
        InfrastructureError: the file is gone or damaged; a teacher that is started again makes it again.
    """
    here = home.here(path)
    if not here.is_file():
        home.pull(here)
    try:
        return _cached(here)[split]
    except (FileNotFoundError, Damaged) as error:
        raise InfrastructureError(f"the teacher's outputs in {path} cannot be read: {error}") from error


@lru_cache(maxsize=2)
def _cached(path: Path) -> dict[str, SplitOutputs]:
    # By its name the content never changes.
    return _read(path)


def _tensors(found: Mapping[str, SplitOutputs]) -> dict[str, Tensor]:
    tensors = {}
    for split, each in found.items():
        tensors[f"{split}.{_TARGETS}"] = each.targets.contiguous()
        tensors |= {f"{split}.outputs.{name}": value.contiguous() for name, value in each.outputs.items()}
    return tensors


def _read(path: Path) -> dict[str, SplitOutputs]:
    try:
        tensors: dict[str, Any] = load(read_checked(path))
        found = {}
        for split in SPLITS:
            start = f"{split}.outputs."
            outputs = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            found[split] = SplitOutputs(outputs=outputs, targets=tensors[f"{split}.{_TARGETS}"])
    except (SafetensorError, KeyError) as error:
        raise Damaged(f"{path} does not hold a teacher's outputs") from error
    return found
