"""A student as a `torch.export` program, which runs without the code of its model."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stillhouse.errors import UsageError, describe_error
from stillhouse.export.agreement import Answer
from stillhouse.models.example_input import example_input
from stillhouse.models.layers import Shape

# torch.export takes a size of 0 or 1 for a constant.
_EXAMPLE_BATCH = 2


def make_program(model: nn.Module, input_shape: Shape) -> ExportedProgram:
    """The program of a model in evaluation mode, on its device, for batches of any size.

    Raises:
        UsageError: torch cannot trace the model, for example because its control flow depends on the pixels.
    """
    example = example_input(model, _EXAMPLE_BATCH, input_shape)
    try:
        return torch.export.export(model, (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:
        raise UsageError(
            f"torch.export cannot trace {type(model).__name__} with a batch of any size: {describe_error(error)}; "
            "its forward must not depend on the values or the number of the images in its control flow"
        ) from error


def save_program(program: ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def load_answer(path: Path) -> Answer:
    """The program in a file that we wrote, as a function. torch unpickles parts of such a file: load no file of others."""
    module = torch.export.load(path).module()

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return answer
