"""A student as an ONNX file, checked and run by onnxruntime."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from stillhouse.durable import write_atomic
from stillhouse.errors import UsageError, describe_error
from stillhouse.export.agreement import Answer
from stillhouse.export.program import tracing

INPUT = "images"
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require_packages() -> None:
    """Checks that the packages of the extra are installed, without importing them.

    Raises:
        UsageError: one is missing.
    """
    if missing := missing_packages():
        raise UsageError(f"exporting needs {' and '.join(missing)}, not installed here: pip install 'stillhouse[export]'")


def missing_packages() -> list[str]:
    """The packages of the extra that are not installed here; none is imported."""
    return [name for name in _PACKAGES if find_spec(name) is None]


def save_onnx(
    program: ExportedProgram, path: Path, output: str, input_name: str = INPUT, sizes: Mapping[int, str] | None = None
) -> None:
    """Writes one self-contained file with one input, [batch, C, H, W] for images, and one output, [batch, K] for logits.

    Args:
        output: what the output is called, such as `logits`.
        input_name: what the input is called.
        sizes: the names of the input's axes that may have any length, by axis; None for the program's own.

    Raises:
        UsageError: the program uses an operation that ONNX lacks.
    """
    try:
        with tracing():
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[input_name],
                output_names=[output],
                dynamic_shapes=(_sizes(program) if sizes is None else dict(sizes),),
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise UsageError(f"the student cannot be written as ONNX: {describe_error(error)}") from error
    assert converted is not None
    converted.save(path)


def _sizes(program: ExportedProgram) -> dict[int, str]:
    """The names of the input's axes that may have any length: the first one, and where it may the second one."""
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    any_length = any(not isinstance(size, int) for value in inputs for size in value.shape[1:2])
    return {0: "batch", 1: "length"} if any_length else {0: "batch"}


def add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Writes text by name into the file, which keeps what it had."""
    import onnx

    model = onnx.load(path)
    known = {each.key: each.value for each in model.metadata_props}
    onnx.helper.set_model_props(model, known | dict(metadata))
    write_atomic(path, model.SerializeToString())


def check_onnx(path: Path) -> None:
    """Checks the file against the standard, including its shapes.

    Raises:
        UsageError: it is not valid.
    """
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:
        raise UsageError(f"the ONNX file is not valid: {describe_error(error)}") from error


def load_answer(path: Path) -> Answer:
    """The file as a function that onnxruntime runs on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    (read,) = session.get_inputs()

    def answer(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {read.name: inputs.numpy()})[0])

    return answer
