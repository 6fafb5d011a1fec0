"""A student as a `torch.export` program, which runs without the code of its model."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stillhouse.errors import UsageError, describe_error
from stillhouse.export.agreement import Answer
from stillhouse.models.example_input import example_input
from stillhouse.models.layers import Shape

METADATA = "metadata.json"
# torch.export takes a size of 0 or 1 for a constant.
_EXAMPLE_BATCH = 2


def varying_sizes(model: nn.Module, input_shape: Shape) -> dict[int, Any]:
    """Which dimensions of the input may have any size: that of the batch and, of a model with `any_length`, the next one too.

    Its samples may then be shorter than `input_shape`, but not longer.
    """
    sizes = {0: Dim("batch")}
    if getattr(model, "any_length", False) and input_shape[0] > 1:
        sizes[1] = Dim("length", max=input_shape[0])
    return sizes


def make_program(model: nn.Module, input_shape: Shape) -> ExportedProgram:
    """The program of a model in evaluation mode, on its device, for batches of any size; see `varying_sizes`.

    Raises:
        UsageError: torch cannot trace the model, for example because its control flow depends on the pixels.
    """
    example = example_input(model, _EXAMPLE_BATCH, input_shape)
    try:
        with tracing():
            return torch.export.export(model, (example,), dynamic_shapes=(varying_sizes(model, input_shape),))
    except Exception as error:
        raise UsageError(
            f"torch.export cannot trace {type(model).__name__} with a batch of any size: {describe_error(error)}; "
            "its forward must not depend on the values or the number of the images in its control flow"
        ) from error


@contextmanager
def tracing() -> Iterator[None]:
    """A context without warnings of libraries about how they describe their own operations to the tracer.

    They are those of the lists of weights that recurrent layers keep beside them, and of torchvision's non-maximum suppression.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.filterwarnings("ignore", message="`create_unbacked_symint`", category=FutureWarning)
        yield


def save_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the program, with `metadata` as JSON in its extra file `metadata.json`."""
    torch.export.save(program, path, extra_files={METADATA: json.dumps(dict(metadata))} if metadata else None)


def load_answer(path: Path) -> Answer:
    """The program in a file that we wrote, as a function. torch unpickles parts of such a file: load no file of others."""
    module = torch.export.load(path).module()

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return answer
